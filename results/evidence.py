"""Reads the recorded runs and computes every figure that the docstrings and the README give.

    python results/evidence.py   # the README's tables

A run is `results/NAME/seedSS.csv`; its accuracy is the mean over its last five epochs, never its best one.
"""
import csv, math, re
from pathlib import Path
from statistics import mean, stdev

here = Path(__file__).parent
steps = ['step1', 'step2', 'step3']


def runs(name):
    "{seed: rows} of experiment `name`; accuracies and losses as floats."
    return {int(f.stem[4:]): [{k: float(v) for k,v in row.items()} for row in csv.DictReader(f.open())]
            for f in sorted((here/name).glob('seed*.csv'))}


def last(rows, column='test_accuracy', n=5):
    "The last `n` values of `column`, in percent."
    return [100*r[column] for r in rows[-n:]]


def error(values):
    "Standard error of the mean of `values`."
    return stdev(values) / math.sqrt(len(values))


def level(name, kind='mean'):
    "A figure of experiment `name` in percent: 'mean' of the seeds' last-five means ('train': train accuracy), or 'lowest' of all last five epochs."
    if kind == 'mean':   return mean(mean(last(r)) for r in runs(name).values())
    if kind == 'train':  return mean(mean(last(r, 'train_accuracy')) for r in runs(name).values())
    if kind == 'lowest': return min(min(last(r)) for r in runs(name).values())
    raise ValueError(kind)


def difference(name, base):
    "Mean and standard error, in points, of `name` minus `base`, paired by the seeds that both have."
    a,b = runs(name),runs(base)
    diffs = [mean(last(a[s])) - mean(last(b[s])) for s in sorted(a.keys() & b.keys())]
    return mean(diffs), error(diffs), len(diffs)


def recorded(name):
    "The evidence for a step in words, as its docstring gives it."
    seeds = runs(name)
    return (f'seeds {min(seeds)} to {max(seeds)}, last 5 of {len(seeds[0])} epochs: mean {level(name):.2f}% '
            f'± {error([mean(last(r)) for r in seeds.values()]):.2f}, lowest {level(name, "lowest"):.2f}%')


# How a text cites a figure: "-0.31 ± 0.05 points [ablations/no-batch-norm against step1]", "99.52% [mean of step3]".
cited_difference = re.compile(r'([+-]\d+\.\d\d) ± (\d+\.\d\d)\s+points\s+\[([\w/-]+)\s+against\s+([\w/-]+)\]')
cited_level = re.compile(r'(\d+\.\d\d)%\s+\[(mean|train|lowest)\s+of\s+([\w/-]+)\]')


def wrong_citations(text):
    "The cited figures in `text` that differ from what the recorded runs give, each with the right one."
    wrong = []
    for m in cited_difference.finditer(text):
        d,se,_ = difference(m[3], m[4])
        if (m[1], m[2]) != (f'{d:+.2f}', f'{se:.2f}'): wrong.append(f'{m[0]}: {d:+.2f} ± {se:.2f}')
    for m in cited_level.finditer(text):
        if m[1] != f'{level(m[3], m[2]):.2f}': wrong.append(f'{m[0]}: {level(m[3], m[2]):.2f}')
    return wrong
