"""The HTTP edge: what every dialect shares. Knows no dialect and no engine."""
