"""Front ends of the functional core for other array types and frameworks: no mathematics here."""
