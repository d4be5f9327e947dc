"""Packs of items: the common part of features that answer several items by one request."""

from promptmill.core.feature import Feature

FEATURE = Feature(words="several items in one request, for features that gather items")
