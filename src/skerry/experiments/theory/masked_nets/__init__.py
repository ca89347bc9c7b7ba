"""Theorems on nets with one hidden layer, masked at random or dealt to workers."""
