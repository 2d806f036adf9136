"""Scoring: generated images compared with real ones in feature spaces."""
