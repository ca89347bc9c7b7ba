"""Methods whose server waits for nobody."""
