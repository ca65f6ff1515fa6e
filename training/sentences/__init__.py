"""What the teacher says: collected and made-up sentences, with their phonemes."""
