"""The only code that touches an ``nn.Module``; everything it touches is put back on any exit."""
