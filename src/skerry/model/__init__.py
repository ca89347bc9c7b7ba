"""What Skerry needs of any module: its tensors by name, what it is called with, and its optimizer state."""
