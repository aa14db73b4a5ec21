"""How the line bears being broken for long and used for long: chaos and soak."""
