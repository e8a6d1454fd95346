"""What commands and library calls can be told, as checked dataclasses."""
