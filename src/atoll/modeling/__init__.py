"""The language model itself: one decoder, its initial weights, file formats, sampling."""
