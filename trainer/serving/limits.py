"""What one request may ask for; everything above it is refused before it takes memory or time."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one request, except `buffered_bytes`."""

    body_bytes: int = 64 * MIB
    """Of the JSON, images included"""
    buffered_bytes: int = 256 * MIB
    """Of all requests whose prompts are being made: their bodies, and their images that were behind URLs"""
    body_timeout_s: float = 60.0
    """In which the whole body must arrive"""
    json_items: int = 1 << 18
    """Commas and opening brackets in the body: each may be an object in memory"""
    messages: int = 1000
    images: int = 16
    text_bytes: int = MIB
    """Of all texts: a tokenizer takes up to 250 bytes of memory for each"""
    new_tokens: int = 2048
    """Of an answer, and the default of max_completion_tokens"""
    stop_strings: int = 4
    stop_characters: int = 1000
    """Of a stop string"""
    image_url_bytes: int = 20 * MIB
    """Of an image behind a URL"""
    image_url_timeout_s: float = 20.0
    """In which an image behind a URL must be there, redirects included"""
    send_timeout_s: float = 60.0
    """In which a client must take each piece of a stream"""
