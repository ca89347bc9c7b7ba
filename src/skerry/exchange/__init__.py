"""The exchange: what moves where between two rounds, known to every process before a byte is sent."""

from skerry.exchange.routes import traffic

__all__ = [
    "traffic",
]
