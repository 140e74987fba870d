"""Run the command line and report a word at each step, each a little slowed."""

import os
import sys
import time

from xray_pneumonia import cli
from xray_pneumonia.training.classifier import PneumoniaClassifier
from xray_pneumonia.workflows import resume, training

PLACES = [
    (PneumoniaClassifier, "training_step", "STEP"),
    (PneumoniaClassifier, "validation_step", "CHECK"),
    (resume, "identity_of", "PREPARED"),
    (training, "_evaluate", "EVALUATE"),
]


def run(arguments, folder, log, words):
    """Run `xray` on these arguments, from this folder, with its messages in a file."""
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)  # both go on where the other stopped
    for owner, name, word in PLACES:
        setattr(owner, name, _reporting(getattr(owner, name), word, words))
    sys.argv = ["xray", *arguments]
    code = cli.main()
    sys.stderr.flush()
    os._exit(code)


def _reporting(plain, word, words):
    def reporting(*arguments, **named):
        words.send(word)
        time.sleep(0.05)
        return plain(*arguments, **named)

    return reporting
