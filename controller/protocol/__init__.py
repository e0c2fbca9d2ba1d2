"""Pure: the protocol's words as types, its decisions, the grammars of names and text. Nothing is sent or read here."""
