"""Everything that runs on a cluster. The only package that imports ray."""
