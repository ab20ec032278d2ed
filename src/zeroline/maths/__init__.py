"""Pure tensor arithmetic: no ``nn.Module``, no model, no files."""
