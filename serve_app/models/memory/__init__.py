"""What the stages take of a GPU's memory, and settings that fit what there is. No torch."""
