"""Reads the recorded runs and computes every figure that the docstrings and the README give.

    python results/evidence.py   # prints the README's tables and draws its pictures

A run is `results/NAME/seedSS.csv`; its accuracy is the mean over its last five epochs, never its best one.
"""
import csv, json, math, re
from pathlib import Path
from statistics import mean, median, stdev

here = Path(__file__).parent
steps = ['step1', 'step2', 'step3']


def runs(name):
    "{seed: rows} of experiment `name`; accuracies and losses as floats."
    return {int(f.stem[4:]): [{k: float(v) for k,v in row.items()} for row in csv.DictReader(f.read_text().splitlines())]
            for f in sorted((here/name).glob('seed*.csv'))}


def last(rows, column='test_accuracy', n=5):
    "The last `n` values of `column`, in percent."
    return [round(100*r[column], 4) for r in rows[-n:]]


def error(values):
    "Standard error of the mean of `values`."
    return stdev(values) / math.sqrt(len(values))


def level(name, kind='mean'):
    """A figure of experiment `name` in percent, over its seeds: 'mean' of the last five epochs' test accuracy, 'train' of their train
    accuracy, 'lowest' of all these test accuracies, or 'swing', their standard deviation within a seed."""
    if kind == 'mean':   return mean(mean(last(r)) for r in runs(name).values())
    if kind == 'train':  return mean(mean(last(r, 'train_accuracy')) for r in runs(name).values())
    if kind == 'lowest': return min(min(last(r)) for r in runs(name).values())
    if kind == 'swing':  return mean(stdev(last(r)) for r in runs(name).values())
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
cited_level = re.compile(r'(\d+\.\d\d)%\s+\[(mean|train|lowest|swing)\s+of\s+([\w/-]+)\]')


def wrong_citations(text):
    "The cited figures in `text` that differ from what the recorded runs give, each with the right one."
    wrong = []
    for m in cited_difference.finditer(text):
        d,se,_ = difference(m[3], m[4])
        if (m[1], m[2]) != (f'{d:+.2f}', f'{se:.2f}'): wrong.append(f'{m[0]}: {d:+.2f} ± {se:.2f}')
    for m in cited_level.finditer(text):
        if m[1] != f'{level(m[3], m[2]):.2f}': wrong.append(f'{m[0]}: {level(m[3], m[2]):.2f}')
    return wrong


def about(name, seed=0):
    "What is recorded beside a run: parameters, versions, device, threads."
    return json.loads((here/name/f'seed{seed:02d}.json').read_text())


def markdown(head, rows):
    "A Markdown table."
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [head, ['---']*len(head), *rows])


def steps_table():
    "The steps: accuracy over the seeds, never of the best epoch."
    rows = []
    for name in steps:
        seeds = runs(name)
        rows.append([f'`{name}.py`', f"{about(name)['parameters']:,}", f'**{level(name):.2f}** ± {error([mean(last(r)) for r in seeds.values()]):.2f}',
                     f'{level(name, "lowest"):.2f}', f'{min(min(last(r, n=3)) for r in seeds.values()):.2f}', f'{level(name, "train"):.2f}'])
    return markdown(['step', 'parameters', 'test accuracy, %', 'lowest of last 5', 'lowest of last 3', 'train accuracy, %'], rows)


def seeds_table(name):
    "Every seed of `name`: the test accuracy of each of its last five epochs."
    return markdown(['seed', *(f'epoch {n}' for n in range(11, 16)), 'mean'],
                    [[str(s), *(f'{a:.2f}' for a in last(rows)), f'{mean(last(rows)):.2f}'] for s,rows in runs(name).items()])


# Each ablation with the experiment it changes in one thing, and what that thing is.
ablations = {
    'ablations/no-batch-norm':   ('step1', 'biases in place of batch norm'),
    'step2':                     ('step1', '`Model_2` in place of `Model_1`'),
    'ablations/average-pooling': ('step2', 'global average in place of depthwise pooling'),
    'ablations/dropout':         ('step2', 'dropout of 0.05 after each ReLU'),
    'ablations/pooling-last':    ('step2', 'max-pooling after batch norm and ReLU'),
    'step3':                     ('step2', 'augmentation and one-cycle schedule'),
    'ablations/constant-rate':   ('step3', "step 2's constant rate in place of the cycle"),
    'ablations/no-augmentation': ('step3', 'no augmentation'),
    'ablations/no-elastic':      ('step3', 'no elastic distortion'),
}

def ablations_table():
    "One change at a time, sorted by its effect on the mean of the last five epochs' test accuracy."
    found = [(*difference(name, base), base, what, name) for name,(base,what) in ablations.items() if runs(name)]
    return markdown(['change', 'to', 'points', 'seeds', 'recorded in'],
                    [[what, base, f'{d:+.2f} ± {se:.2f}', str(n), f'`results/{name}`'] for d,se,n,base,what,name in sorted(found)])


def threads_table():
    "Seconds of an epoch of step 3, training and testing, by number of threads."
    rows = list(csv.DictReader((here/'threads.csv').read_text().splitlines()))
    by = {n: [float(r['seconds']) for r in rows if r['threads'] == n] for n in dict.fromkeys(r['threads'] for r in rows)}
    return markdown(['threads', 'seconds of an epoch, median', 'all'], [[n, f'{median(s):.1f}', ', '.join(f'{o:.1f}' for o in s)] for n,s in by.items()])


def draw(name, before=None):
    "Picture of a step: every seed's test accuracy by epoch, their mean, the train accuracy, and the mean of the step before."
    import matplotlib.pyplot as plt
    def by_epoch(name, column): return [100*mean(rs) for rs in zip(*([r[column] for r in rows] for rows in runs(name).values()))]
    epochs = range(1, 16)
    plt.figure(figsize=(8, 4.5))
    for rows in runs(name).values(): plt.plot(epochs, [100*r['test_accuracy'] for r in rows], color='C0', lw=.7, alpha=.6)
    plt.plot(epochs, by_epoch(name, 'test_accuracy'), color='C0', lw=2.5, label=f'{name}: test, mean of the seeds (thin: each seed)')
    plt.plot(epochs, by_epoch(name, 'train_accuracy'), color='C1', ls='--', label=f'{name}: train, as it trains')
    if before: plt.plot(epochs, by_epoch(before, 'test_accuracy'), color='grey', lw=2, label=f'{before}: test, mean of the seeds')
    plt.axhline(99.4, color='black', lw=1, ls=':', label='the goal: 99.40%')
    plt.ylim(98, 100)
    plt.xticks(epochs)
    plt.xlabel('epoch')
    plt.ylabel('accuracy, %')
    plt.legend(loc='lower right', fontsize=9)
    plt.tight_layout()
    plt.savefig(here/f'{name}.png', dpi=100)
    plt.close()


if __name__ == '__main__':
    print(f'{steps_table()}\n\n{seeds_table("step3")}\n\n{ablations_table()}\n\n{threads_table()}')
    for name,before in zip(steps, [None, *steps]): draw(name, before)
