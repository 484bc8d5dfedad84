"""EPIC-Kitchens: action accuracy of a verb and a noun classifier, tested on the same videos.

python jobs/combine_epic.py VERB_RUN NOUN_RUN

An action classifier needs no second one: jobs/evaluate.py gives its verb and noun accuracy, too.
"""

from kinema.cli import parse, run
from kinema.pipelines.compare import EpicConfig, combine_epic


def main() -> int:
    """Combine and print."""
    positional = ("verb_run", "noun_run")
    combine_epic(parse(EpicConfig, default=None, description=__doc__, positional=positional))
    return 0


if __name__ == "__main__":
    run(main)
