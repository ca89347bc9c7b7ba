"""Files: written so that a reader, or a kill at any instant, finds them whole."""
