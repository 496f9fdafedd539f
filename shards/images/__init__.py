"""From stored image bytes to the pixels that the encoder sees."""
