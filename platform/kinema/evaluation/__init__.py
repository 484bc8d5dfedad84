"""Evaluation one can trust: every test video once, coverage reported, intervals everywhere."""
