"""Computes from the tables in results/ what the docstrings and the READMEs give, and puts their tables and rows in.

    python results/evidence.py   # fills in the tables and the steps' rows, draws the pictures; MNIST is in $MNIST_ROOT

The accuracy of a run is the mean over its last five epochs, never its best epoch.
"""
import re
from functools import cache

from record import experiments, here, parts, step3, value_of, values
from data import RandomWarp, mnist_form
import matplotlib.pyplot as plt, numpy as np, pandas as pd, torch
from fastai.vision.all import AttrDict, TensorImageBW, set_seed, show_images
from PIL import Image, ImageDraw, ImageFilter
from scipy import stats
from torch.nn import functional as F
from torchvision.utils import save_image

project = here.parent
steps = ['step1', 'step2', 'step3']
variants = ['step3-8epochs', 'step3-4epochs', 'step3-3epochs', 'step3-Model_4', 'step3-Model_5']
texts = [project/f'{step}.py' for step in steps] + [project/'README.md', here/'README.md']
epochs,runs = (pd.read_csv(here/f'{name}.csv') for name in ('epochs', 'runs'))


def test_runs(name): return runs[(runs.experiment == name) & (runs.fold == 0)].set_index('seed')

def late(name, n=None):
    "A row per seed of the last `n` epochs' test accuracy, in percent: of the last five, or where there are fewer than eight, of the last."
    found = epochs[(epochs.experiment == name) & (epochs.fold == 0)]
    found = (100*found.pivot(index='seed', columns='epoch', values='valid_accuracy')).round(4)
    return found.iloc[:, -(n or (5 if found.shape[1] >= 8 else 1)):]

def reached(name, goal=99.4):
    "For each seed the first epoch from which on no test accuracy is below `goal` percent; NaN where the last one is."
    lasting = (late(name, 99) >= goal).iloc[:, ::-1].cummin(axis=1)
    return (lasting.shape[1] + 1 - lasting.sum(axis=1)).where(lasting.iloc[:, 0])

def wrong(name):
    "For each run of `name` on the test images: image -> digit that the net takes it for, after the last epoch."
    return [{int(i): int(guess) for i,guess in (o.split(':') for o in found.split())} for found in test_runs(name).wrong]

def met(name, target=None):
    "How many seeds of `name` meet the target of its step (or `target`, a fraction) in each of the last three epochs."
    return int((late(name, 3).min(axis=1) >= 100*(target or experiments[name][0].target)).sum())

def summary(name):
    "All numbers of experiment `name` that a text may give, as it gives them; of the last five epochs where nothing else is said."
    found,first = late(name),reached(name)
    return AttrDict(parameters=f'{test_runs(name).parameters.iloc[0]:,}', epochs=str(late(name, 99).shape[1]),
                    mean=f'{found.stack().mean():.2f}', half=f'{interval(found.mean(axis=1)):.2f}',  # of the 95% interval over the seeds
                    lowest=f'{found.min(axis=None):.2f}', met=f'{met(name)} of {len(found)}',
                    train=f'{100*test_runs(name).clean_accuracy.mean():.2f}',  # accuracy on the training images, after the last epoch
                    sd=f'{found.std(axis=1).mean():.2f}',                      # standard deviation over the epochs of a seed
                    first=f'{first.min():.0f} to {first.max():.0f}' if first.notna().all() else 'never')  # from it on 99.40%, by seed


def interval(d, extra=0):
    "Half the width of the 95% t-interval of the mean of `d`; `extra` corrects for training images that runs share (see `on_folds`)."
    return stats.t.ppf(.975, len(d)-1) * d.std() * np.sqrt(1/len(d) + extra)

def base(name):
    "The experiment that `name` changes: its own step, or for a step the one before."
    return experiments[name][0].__name__ if name not in steps else steps[steps.index(name) - 1]

def difference(name):
    "Test accuracy of `name` less that of `base(name)`, in percentage points: one value per seed that both have."
    return (late(name).mean(axis=1) - late(base(name)).mean(axis=1)).dropna()

def words(name, places=2):
    "`difference(name)` with its 95% interval."
    d = difference(name)
    return f'{d.mean():+z.{places}f} ± {interval(d):.{places}f}'  # z: no minus before a zero

def changes():
    "The experiments on the test images that have a difference: what it is of -> name."
    found = runs[runs.fold == 0].experiment.unique()
    return {experiments[name][2]: name for name in found if name != 'step1' and experiments[name][2]}

def on_folds(name):
    """Of `name` against its base: loss ratio of each fold, difference in accuracy in percentage points, half its 95% interval over
    the folds, runs. Only folds and seeds that both have count; runs of one fold are averaged first. 1/5 is images evaluated on over
    images trained on (Nadeau and Bengio 2003)."""
    found = epochs[(epochs.fold > 0) & epochs.experiment.isin([name, base(name)])]
    found = found.groupby(['experiment', 'fold', 'seed'])[['valid_loss', 'valid_accuracy']].apply(lambda run: run.tail(5).mean())
    pairs = found.loc[name].merge(found.loc[base(name)], on=['fold', 'seed'], suffixes=('', '_base'))
    m = pairs.groupby('fold').mean()
    d = 100*(m.valid_accuracy - m.valid_accuracy_base)
    return m.valid_loss/m.valid_loss_base, d.mean(), interval(d, extra=1/5), len(pairs)

def decided(name):
    "What the two rules of results/README.md say of `name`: the second of a part left out, the first of all others."
    ratio,d,_,n = on_folds(name)
    whole = len(ratio) == 6 and n >= 12
    if name in parts: return ('stays' if (ratio > 1).sum() >= 5 else 'not needed') if whole else 'undecided'
    if (ratio > 1).sum() >= 2 or whole and d <= 0: return 'no'
    return 'taken' if whole else 'undecided'


def markdown(head, rows): return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [head, ['---']*len(head), *rows])

def steps_table():
    "The steps, and step 3 for fewer epochs or with fewer parameters."
    rows = [(f'[`{s}.py`]({s}.py)', s) for s in steps] + [(f'`step3.py {option(v)}`', v) for v in variants if len(test_runs(v))]
    return markdown(['', 'parameters', 'epochs', 'test accuracy, %', 'lowest', '99.40% from epoch', 'target met'],
                    [[what, k.parameters, k.epochs, f'**{k.mean}** ± {k.half}', k.lowest, k.first, k.met]
                     for what,name in rows for k in [summary(name)]])

def option(name): return ' '.join(f"--{k} {getattr(v, '__name__', v)}" for k,v in experiments[name][1].items())

@cache  # the rows of the steps ask for it one by one
def significant():
    "The changes that are significant at 5% after Holm's correction for all of them."
    p = pd.Series({name: stats.ttest_1samp(difference(name), 0).pvalue for name in changes().values()}).sort_values()
    return set(p.index[(p*np.arange(len(p), 0, -1)).cummax() <= .05])

def changes_table():
    "Each change, by step, sorted by its effect."
    found = significant()
    rows = sorted((base(name) if name not in steps else name, difference(name).mean(), what, name) for what,name in changes().items())
    return markdown(['change', 'step', 'percentage points', 'significant', 'target met', 'standard deviation', '99.40% from epoch'],
                    [[what, step[-1], words(n, 3), 'yes' if n in found else 'no', k.met, k.sd, k.first]
                     for step,_,what,n in rows for k in [summary(n)]])

def folds_table():
    rows,elsewhere = [],{*steps, *(f'{name}-{o}' for name,(_,*others) in values.items() for o in others)}  # in `values_table`
    for name in experiments:
        if name in elsewhere or not experiments[name][2] or not len(runs[(runs.experiment == name) & (runs.fold > 0)]): continue
        ratio,d,half,n = on_folds(name)
        accuracy = f'{d:+z.3f}' + (f' ± {half:.3f}' if len(ratio) == 6 else '')  # of fewer folds an interval says little
        rows.append([experiments[name][2], base(name)[-1], f'{(ratio < 1).sum()} of {len(ratio)}', f'{100*(ratio.mean() - 1):+.1f}%',
                     accuracy, str(n), f'{1 + (name in parts)}: {decided(name)}'])
    return markdown(['change', 'step', 'folds of lower loss', 'mean loss', 'accuracy, percentage points', 'runs', 'rule: outcome'], rows)

def values_table():
    "Step 3's numbers, and what a smaller and a larger one did to the loss on the folds."
    def cell(name, value):
        ratio = on_folds(f'{name}-{value}')[0]
        return f'{value}: {100*(ratio.mean() - 1):+.1f}% ({(ratio < 1).sum()}/{len(ratio)})'
    return markdown(['step 3', 'smaller', 'larger'],
                    [[f'{what} {value_of(name)}', *(cell(name, o) for o in others)] for name,(what,*others) in values.items()])

def speed_table():
    times = pd.read_csv(here/'speed.csv').drop(columns='all of `step3.py --epochs 4`')
    ratio = times.div(times['step3.py'], axis=0).median()
    return markdown(['an epoch of step 3, with testing', 'seconds', 'against step 3'],
                    [[what, f'{times[what].median():.1f}', f'{ratio[what]:.2f}×'] for what in times])

tables = dict(steps=steps_table, changes=changes_table, folds=folds_table, values=values_table, speed=speed_table)

def row(name):
    "What a step's text says of change `name`: difference, seeds that meet the target, significance."
    return f'{words(name)}  {summary(name).met:>8}  {"yes" if name in significant() else "no":<3}'

def fill(path):
    "The text of `path` with its tables, and in a step's docstring the Result and the rows of changes, as the recorded runs give them."
    text = path.read_text(encoding='utf-8')
    text = re.sub(r'(<!-- table (\w+) -->\n).*?(<!-- end -->)', lambda m: f'{m[1]}\n{tables[m[2]]()}\n\n{m[3]}', text, flags=re.S)
    for what,name in changes().items(): text = re.sub(rf'[+-]\d+\.\d+ ± .*(?=  {re.escape(what)}\n)', lambda _: row(name), text)
    if path.stem in steps: text = re.sub(r'(?<=recorded: ).*', lambda _: result(path.stem), text)
    return text

def result(step):
    k,seeds = summary(step),late(step).index
    return f'seeds 0 to {max(seeds)}, last 5 of 15 epochs: mean {k.mean}% ± {k.half} (95% interval), lowest {k.lowest}%'


def save(name):
    plt.tight_layout()
    plt.savefig(here/'pictures'/f'{name}.png', dpi=100)
    plt.close()

def draw_step(step, before=None):
    "Every seed's test accuracy by epoch, their mean, the train accuracy, and the mean of the step before."
    test,train = late(step, 99).T,epochs[(epochs.experiment == step) & (epochs.fold == 0)].groupby('epoch').train_accuracy.mean()
    ax = test.add_prefix('_').plot(figsize=(8, 4.5), color='C0', lw=.7, alpha=.6, ylim=(98, 100), xticks=test.index, ylabel='accuracy, %')
    ax.plot(test.mean(axis=1), color='C0', lw=2.5, label=f'{step}: test, mean of the seeds (thin: each seed)')
    ax.plot(100*train, color='C1', ls='--', label=f'{step}: train, as it trains')
    if before: ax.plot(late(before, 99).mean(), color='grey', lw=2, label=f'{before}: test, mean of the seeds')
    ax.axhline(99.4, color='black', lw=1, ls=':', label='the goal: 99.40%')
    ax.legend(loc='lower right', fontsize=9)
    save(step)

def draw_hardest(test):
    "The 30 images of `test` that the seeds of step 3 most often get wrong."
    taken = pd.DataFrame([o for seed in wrong('step3') for o in seed.items()], columns=['image', 'digit'])
    worst = taken.image.value_counts().index[:30]
    digits = [taken[taken.image == i].digit.value_counts().items() for i in worst]
    titles = [f'label {test.y[i]}\n' + ', '.join(f'{d} ({c})' for d,c in o) for i,o in zip(worst, digits)]
    show_images(255 - test.x[worst, 0], 3, titles=titles, figsize=(13, 5.4),
                suptitle='The test images that step 3 most often gets wrong: what they are taken for (by how many seeds)')
    save('hardest')

def draw_warps(x):
    "The first eight of the images `x`, and beside each four random warps of it, as step 3 trains on them."
    set_seed(0)
    x,warp = TensorImageBW(x[:8].float()/255),RandomWarp(**step3.warp)
    shown = 1 - torch.stack([x, *[warp(x, split_idx=0) for _ in range(4)], 0*x], 1).as_subclass(torch.Tensor)  # the last one: a gap
    save_image(F.interpolate(shown.flatten(0, 1), scale_factor=2), here/'pictures'/'warps.png', nrow=12, padding=4, pad_value=1)

def photograph(strokes, seed, size=240):
    "A digit as if written with a pen and photographed: lines through points (x, y) from 0 to 1, on shaded paper, with noise."
    image,rng = Image.new('L', (size, size), 255),np.random.default_rng(seed)
    for points in strokes: ImageDraw.Draw(image).line([(size*x, size*y) for x,y in points], fill=20, width=11, joint='curve')
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)).rotate(rng.uniform(-8, 8), fillcolor=255))/255
    ground = 215 - 70*np.add.outer(np.linspace(0, 1, size), np.linspace(0, .6, size))
    return Image.fromarray((ground*(.25 + .75*image) + rng.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8))

def draw_handwriting(learn):
    "Three digits drawn as if photographed, what the net sees, and what it says."
    arc = [(.5 + .17*np.cos(a), .33 + .13*np.sin(a)) for a in np.linspace(-3, 1.2, 20)]
    written = [[[(.3, .3), (.65, .28), (.45, .75)], [(.4, .53), (.62, .5)]], [arc + [(.33, .75), (.72, .74)]],
               [[(.45, .25), (.36, .55), (.68, .53)], [(.6, .38), (.57, .78)]]]
    photos = [photograph(o, seed) for seed,o in enumerate(written)]
    with learn.no_bar(), learn.no_logging(): said = [learn.predict(o) for o in photos]
    titles = [None]*3 + [f'"{digit}", probability {p[i]:.3f}' for digit,i,p in said]
    show_images([*photos, *map(mnist_form, photos)], 2, titles=titles, figsize=(6, 4.4),
                suptitle='Above: drawn by a program, as if photographed; below: what the net sees')
    save('handwriting')


if __name__ == '__main__':
    plt.switch_backend('agg')
    for path in texts: path.write_text(fill(path), encoding='utf-8')
    for step,before in zip(steps, [None, *steps]): draw_step(step, before)
    plt.rcParams.update({'axes.titlesize': 9, 'figure.titlesize': 11, 'image.cmap': 'gray'})
    learn = step3.learner(pretrained=True, data='mnist')
    draw_hardest(learn.dls.valid_ds)
    draw_warps(learn.dls.train_ds.x)
    draw_handwriting(learn)
