"""The requester's side: all that an application may import. Nothing of an engine or of a controller is here."""
