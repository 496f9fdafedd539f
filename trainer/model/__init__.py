"""The model: encoder, projector, decoder, adapters, and which of its parameters are trained."""
