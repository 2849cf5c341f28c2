"""Computes the tables of the READMEs and the rows in the steps' texts from the recorded runs.

    python results/evidence.py   # fills in the tables

The accuracy of a run is the mean over its last five epochs (of 4 epochs: the last one), never its best epoch.
"""
import re

from experiments import experiments, here, key
import numpy as np, pandas as pd
from scipy import stats

steps = ['step1', 'step2', 'step3']
epochs = pd.read_csv(here/'epochs.csv')
runs = pd.read_csv(here/'runs.csv')
times = pd.read_csv(here/'speed.csv')
commands = times.filter(like='all of')  # whole commands, the other columns are epochs


def measure(run):
    "What counts of a run, from its epochs. Accuracies are in percent."
    accuracy = (100*run.valid_accuracy).round(4)
    last = accuracy.tail(5 if len(run) >= 8 else 1)
    below = run.epoch[accuracy < 99.4]
    return pd.Series(dict(
        accuracy=last.mean(), lowest=last.min(), fluctuation=last.std(),
        loss=run.valid_loss.tail(5).mean(),
        epochs=len(run), final=accuracy.iloc[-1],
        late=accuracy.tail(3).min(),       # to compare with the target
        since=max(below, default=0) + 1))  # from this epoch on 99.40% or more

measured = epochs.groupby(key).apply(measure, include_groups=False).join(runs.set_index(key))
measured['train'] = 100*measured.clean_accuracy  # after the last epoch, without augmentation and dropout
measured['gap'] = measured.train - measured.final
tested = measured.xs(0, level='fold')      # evaluated on the test images
held_out = measured.drop(0, level='fold')  # evaluated on a fold of the training images

# The rows of the tables: words -> step, what is compared with what.
pairs = {what: (step.__name__, name, step.__name__) for name,(step,_,what) in experiments.items() if what}
pairs |= {
    'all of step 2, against step 1': ('step2', 'step2', 'step1'),
    'the net without dropout, against step 1': ('step2', 'step2-without-dropout', 'step1'),
    'all of step 3, against step 2': ('step3', 'step3', 'step2'),
    'schedule, decay and average, against step 2 without dropout':
        ('step3', 'without-augmentation', 'step2-without-dropout'),
    'four epochs without the average of the weights, against four epochs':
        ('step3', '4epochs-without-average', 'step3-4epochs')}
# Those that are recorded.
changes = [what for what,(_,name,_) in pairs.items() if name in tested.index]


def margin(values):
    "How far the mean may be off: half the width of its 95% interval (Student's t)."
    return stats.sem(values)*stats.t.ppf(.975, len(values)-1)

def difference(what, value='accuracy'):
    "By how many percentage points `value` differs: a number for each seed that both sides have."
    _,name,base = pairs[what]
    return (tested.loc[name][value] - tested.loc[base][value]).dropna()

# A change is clear where its p-value is at most 5% after Holm's correction for all of them.
p_values = pd.Series({what: stats.ttest_1samp(difference(what), 0).pvalue for what in changes}).sort_values()
corrected = (p_values*np.arange(len(changes), 0, -1)).cummax()
clear = (corrected <= .05).map({True: 'yes', False: 'no'})


def in_words(values):
    "The mean of differences with its 95% interval."
    return f'{values.mean():+z.2f} ± {margin(values):.2f}'  # z: no minus before a zero

def met(name, target=None):
    "How many seeds reach the target of their step (or `target`) in each of the last three epochs."
    target,late = target or experiments[name][0].target,tested.loc[name].late
    return f'{(late > 100*target - 1e-6).sum()} of {len(late)}'

def since(name):
    "The first epoch from which on a seed has 99.40% or more: from the first to the last seed."
    found = tested.loc[name].since
    never = found > tested.loc[name].epochs
    if never.any(): return 'no seed' if never.all() else 'not every seed'
    return f'{found.min():.0f} to {found.max():.0f}'

def level(name, value):
    "The mean of `value` over the seeds of `name`. The gap is that of the rounded means: so a reader gets it, too."
    if value == 'gap': return f"{float(level(name, 'train')) - float(level(name, 'final')):.2f}"
    return f'{tested.loc[name][value].mean():.2f}'.replace('nan', '–')  # one epoch does not fluctuate

def row(what):
    "A change, or the step itself, as a step's text shows it."
    if what in pairs: name,change,said = pairs[what][1],in_words(difference(what)),clear[what]
    else:             name,change,said = what.removesuffix(' itself').replace(' ', ''),'',''
    return f"{change:12}  {said:5}  {level(name, 'gap')}  {level(name, 'fluctuation'):11}  {met(name):10}  {what}"

def mistakes(name):
    "All wrong answers of the seeds of `name`: the image, and the digit that it was taken for."
    return tested.loc[name].wrong.str.extractall(r'(?P<image>\d+):(?P<taken_for>\d)').astype(int)

def by_images(name, base=None):
    """How far other test images may move the mean accuracy of `name`, or its difference to `base`: half the width of
    a 95% interval, from the share of seeds that get each of the 10,000 images wrong."""
    seeds = tested.loc[name].index.intersection(tested.loc[base or name].index)
    def errors(name): return np.bincount(mistakes(name).query('seed in @seeds').image, minlength=10_000)/len(seeds)
    rates = errors(name) - (errors(base) if base else 0)
    return 100*1.96*rates.std()/np.sqrt(10_000)


# Tables and sentences of the READMEs, line by line.

def steps_table():
    names = {f'[`{step}.py`]({step}.py)': step for step in steps} | {
        '`step3.py --epochs 8`': 'step3-8epochs',
        '`step3.py --epochs 4` (accuracy: the last epoch; target: epochs 2 to 4)': 'step3-4epochs',
        '`step3.py --model Model_4`': 'step3-Model_4',
        '`step3.py --model Model_5`': 'step3-Model_5'}
    yield '|  | parameters | epochs | test accuracy, % | lowest | ≥ 99.40% from epoch | target met |'
    yield '|' + ' --- |'*7
    for what,name in names.items():
        found = tested.loc[name]
        yield (f"| {what} | {found.parameters[0]:,} | {found.epochs[0]:.0f} | **{level(name, 'accuracy')}** ± "
               f'{margin(found.accuracy):.2f} | {found.lowest.min():.2f} | {since(name)} | {met(name)} |')

def changes_table():
    yield ('|  | test accuracy | images | clear | train | gap (change) | fluctuation (change) | target met | '
           '≥ 99.40% from epoch |')
    yield '|' + ' --- |'*9
    for step in steps:
        accuracy = tested.loc[step].accuracy
        yield (f"| **step {step[-1]}** | {level(step, 'accuracy')} ± {margin(accuracy):.2f} | ±{by_images(step):.2f} | "
               f" | {level(step, 'train')} | {level(step, 'gap')} | {level(step, 'fluctuation')} | {met(step)} | "
               f'{since(step)} |')
        rows = [what for what in changes if pairs[what][0] == step]
        for what in sorted(rows, key=lambda what: difference(what).mean()):
            _,name,base = pairs[what]
            def cell(value): return f'{level(name, value)} ({in_words(difference(what, value))})'
            fluctuation = '–' if tested.loc[name].fluctuation.isna().all() else cell('fluctuation')
            yield (f'| {what} | {in_words(difference(what))} | ±{by_images(name, base):.2f} | {clear[what]} | '
                   f"{level(name, 'train')} | {cell('gap')} | {fluctuation} | {met(name)} | {since(name)} |")

def on_folds(name, base):
    "Each run of `name` on a fold beside that of `base` with the same seed; None if there is none."
    ours,its = held_out.query('experiment == @name'),held_out.query('experiment == @base')
    both = ours.merge(its, on=['fold', 'seed'], suffixes=('', '_base'))
    return None if both.empty else both

def compared(both):
    "Loss and accuracy of `on_folds`, and the number of runs, as cells of a table."
    loss = both.loss/both.loss_base - 1
    return (f'{loss.mean():+.1%} ± {margin(loss):.1%} | {in_words(both.accuracy - both.accuracy_base)} | '
            f'{len(both)} |')

def folds_table():
    yield '| change | step | folds where the change is better | loss | accuracy, percentage points | runs |'
    yield '|' + ' --- |'*6
    for what,(step,name,base) in pairs.items():
        both = on_folds(name, base)
        if name == step or both is None: continue
        fold = both.groupby('fold')[['loss', 'loss_base']].mean()
        better = fold.loss < fold.loss_base
        yield f'| {what} | {step[-1]} | {better.sum()} of {len(better)} | {compared(both)}'

def nets_table():
    "Small nets, smallest first, against today's `Model_5`: by the rule, and in pairs."
    yield '| filters | parameters | loss, against both seeds | loss, in pairs | accuracy, percentage points | runs |'
    yield '|' + ' --- |'*6
    today = 'filters-223354'
    nets = held_out.parameters.filter(like='filters-').groupby('experiment').first()
    for name,parameters in nets.drop(today).sort_values().items():
        loss,its = [held_out.loc[net].loss.groupby('fold').mean() for net in (name, today)]
        ratio = loss.mean()/its[loss.index].mean() - 1
        filters = ' '.join(name.removeprefix('filters-'))
        yield f'| {filters} | {parameters:,} | {ratio:+.1%} | {compared(on_folds(name, today))}'

def seeds_on_folds():
    seeds = held_out.loc['step3'].groupby('seed').mean(numeric_only=True)
    first,fresh = seeds[:2].mean(),seeds[2:].mean()
    yield (f'Step 3 on the folds: {first.accuracy:.2f}% with seeds 0 and 1 (loss {first.loss:.4f}), '
           f'{fresh.accuracy:.2f}% with seeds 2 to {len(seeds) - 1} (loss {fresh.loss:.4f}).')

def speed_table():
    "Each ratio is the median of the rounds: with step 2 in the same round where step 2 is timed, else with step 3."
    yield '| an epoch, with testing | seconds | compared |'
    yield '|' + ' --- |'*3
    for what in times.drop(columns=commands.columns):
        base = 'step2.py' if what.startswith('step2') else 'step3.py'
        ratio = (times[what]/times[base]).median()
        yield f'| {what} | {times[what].median():.1f} | {ratio:.2f}× {base} |'

def commands_in_words():
    for what,seconds in commands.median().items():
        found = tested.loc[f'step3-{what[-2]}epochs']
        yield (f'From its start to its last picture, {what} takes {seconds:.0f} seconds. Its last epoch has '
               f'{found.final.mean():.2f}% ± {margin(found.final):.2f} on the test images ({len(found)} seeds).')

def shifts_in_words():
    again = tested.loc['step3-again']
    gain = 100*again.shifted_accuracy - again.final
    yield (f'{len(again)} seeds of step 3, trained again, have {again.final.mean():.2f}% after the last '
           'epoch. Nine answers averaged, to each image and to its eight shifts by one pixel, change this by '
           f'{in_words(gain)} percentage points.')

tables = dict(steps=steps_table, changes=changes_table, folds=folds_table, nets=nets_table, seeds=seeds_on_folds,
              speed=speed_table, command=commands_in_words, shifts=shifts_in_words)

def fill(text):
    "`text` with its tables as the recorded runs give them."
    def filled(found):
        lines = '\n'.join(tables[found[2]]())
        return f'{found[1]}\n\n{lines}\n\n{found[3]}'
    return re.sub(r'(?s)(<!-- table (\w+) -->).*?(<!-- end -->)', filled, text)


if __name__ == '__main__':
    for page in (here.parent/'README.md', here/'README.md'):
        filled = fill(page.read_text(encoding='utf-8'))
        page.write_text(filled, encoding='utf-8')
