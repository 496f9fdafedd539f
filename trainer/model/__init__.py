"""The model: encoder, projector, decoder, adapters, and which of the parameters are trained."""
