"""Which tokens of a clip are hidden: the token grid and every mask."""
