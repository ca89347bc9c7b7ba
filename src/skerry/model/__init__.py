"""Models: the tensors of any module by name, what it is called with, and its optimizer state as named tensors."""
