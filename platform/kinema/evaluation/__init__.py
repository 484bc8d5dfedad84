"""Evaluation one can trust: every test video once, coverage reported, intervals with every number."""
