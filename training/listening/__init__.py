"""Speech heard and measured: words by a recogniser, quality, pitch, likeness, pictures."""
