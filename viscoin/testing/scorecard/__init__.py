"""Maps of classes and of concepts in one table: the same scenes, and the same questions with known answers."""

from viscoin.testing.scorecard.result import Answer, Row, Scorecard, test_scorecard

__all__ = ["Answer", "Row", "Scorecard", "test_scorecard"]
