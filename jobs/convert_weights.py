"""Bring weights in from VideoMAE or Hugging Face, or take them out to either, or to torch.export.

python jobs/convert_weights.py source=checkpoint.pth output=encoder.safetensors
python jobs/convert_weights.py source=best.safetensors layout=huggingface \\
    output=hf/model.safetensors
"""

from kinema.cli import parse, run
from kinema.models.exchange import ConvertConfig, convert


def main() -> int:
    """Convert and say which share of the tensors matched."""
    print(convert(parse(ConvertConfig, default=None, description=__doc__)))
    return 0


if __name__ == "__main__":
    run(main)
