#!/usr/bin/env python3
"""
Makes tiny CLIP and LLaVA files with random weights by real exporters and tools, and what PyTorch expects of each, for
check.ts.

    python -m venv venv && venv/bin/pip install -r test/exports/requirements.txt
    venv/bin/python test/exports/make.py --out exports-out [--seed 12] [--only vision_a llava]

Nothing is downloaded but the packages. A file that its own tool broke (ONNX Runtime does not open it, or computes something
else) is no case; broken.json lists those.
"""

import argparse

import hugging_face
import llava
import odd
import others
from suite import Suite

GROUPS = {"hugging_face": hugging_face, "llava": llava, "others": others, "odd": odd}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=12, help="of all weights and images")
    parser.add_argument("--groups", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--only", nargs="*", help="parts of names; default: all")
    options = parser.parse_args()
    suite = Suite(options.out, options.only)
    for name in options.groups:
        GROUPS[name].cases(suite, options.seed)
    suite.close()


if __name__ == "__main__":
    main()
