"""Are concepts drawn as they are asked for, one at a time?"""

from viscoin.testing.drawing.result import DrawingResult, test_drawing

__all__ = ["DrawingResult", "test_drawing"]
