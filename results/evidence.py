"""Computes from results/epochs.csv and runs.csv every number that the docstrings and the READMEs give, and puts the tables in.

    python results/evidence.py   # fills in the tables and the steps' rows, draws the pictures; MNIST is in $MNIST_ROOT

The accuracy of a run is the mean over its last five epochs, never its best epoch.
"""
import re

from record import experiments, here, parts, step3
from data import mnist_form
import matplotlib.pyplot as plt, numpy as np, pandas as pd
from PIL import Image, ImageDraw, ImageFilter
from scipy import stats

project = here.parent
steps = ['step1', 'step2', 'step3']
texts = [project/f'{step}.py' for step in steps] + [project/'README.md', here/'README.md']
epochs,runs = (pd.read_csv(here/f'{name}.csv') for name in ('epochs', 'runs'))


def test_runs(name): return runs[(runs.experiment == name) & (runs.fold == 0)].set_index('seed')

def late(name, n=5):
    "A row per seed of the last `n` epochs' test accuracy, in percent."
    found = epochs[(epochs.experiment == name) & (epochs.fold == 0)]
    return (100*found.pivot(index='seed', columns='epoch', values='valid_accuracy')).round(4).iloc[:, -n:]

def reached(name, goal=99.4):
    "For each seed the first epoch from which on no test accuracy is below `goal` percent; NaN where the last one is."
    below = late(name, 99) < goal
    first = below.apply(lambda row: max((e for e in row.index if row[e]), default=0) + 1, axis=1)
    return first.where(first <= below.shape[1])

def wrong(name):
    "For each run of `name` on the test images: image -> digit that the net takes it for, after the last epoch."
    return [{int(i): int(guess) for i,guess in (o.split(':') for o in found.split())} for found in test_runs(name).wrong]

def summary(name):
    "All numbers of experiment `name` that a text may give, as it gives them; of the last five epochs where nothing else is said."
    found,first = late(name),reached(name)
    return dict(parameters=f'{test_runs(name).parameters.iloc[0]:,}', seeds=str(len(found)),
                mean=f'{found.stack().mean():.2f}', error=f'{found.mean(axis=1).sem():.2f}',  # standard error over the seeds
                lowest=f'{found.min(axis=None):.2f}', lowest3=f'{late(name, 3).min(axis=None):.2f}',
                train=f'{100*test_runs(name).clean_accuracy.mean():.2f}',  # accuracy on the training images, after the last epoch
                sd=f'{found.std(axis=1).mean():.2f}',                      # standard deviation over the epochs of a seed
                goal=str((found.min(axis=1) >= 99.4).sum()),               # seeds with every late epoch at 99.40 or more
                first=f'{first.min():.0f} to {first.max():.0f}' if first.notna().all() else 'never')


def interval(d, extra=0):
    "Half the width of the 95% t-interval of the mean of `d`; `extra` corrects for training images that runs share (see `on_folds`)."
    return stats.t.ppf(.975, len(d)-1) * d.std() * np.sqrt(1/len(d) + extra)

def signed(value, places=2): return f'{round(value, places) + 0:+.{places}f}'  # + 0: no minus before a zero

def base(name):
    "The experiment that `name` changes: its own step, or for a step the one before."
    return experiments[name][0].__name__ if name not in steps else steps[steps.index(name) - 1]

def difference(name):
    "Test accuracy of `name` less that of `base(name)`, in percentage points: one value per seed that both have."
    return (late(name).mean(axis=1) - late(base(name)).mean(axis=1)).dropna()

def words(name, places=2):
    "`difference(name)` with its 95% interval."
    d = difference(name)
    return f'{signed(d.mean(), places)} ± {interval(d):.{places}f}'

def fold_words(name):
    "The difference that `name` makes on the folds, with its 95% interval."
    _,d,half,_ = on_folds(name)
    return f'{signed(d)} ± {half:.2f}'

def changes():
    "The experiments on the test images that have a difference: what it is of -> name."
    found = runs[runs.fold == 0].experiment.unique()
    return {experiments[name][2]: name for name in found if name != 'step1' and experiments[name][2]}

def on_folds(name):
    """Of `name` against its base: loss ratio of each fold, difference in accuracy in percentage points, half its 95% interval over
    the folds, runs. Runs of one fold are averaged first; 1/5 is images evaluated on over images trained on (Nadeau and Bengio 2003)."""
    found = epochs[(epochs.fold > 0) & epochs.experiment.isin([name, base(name)])]
    found = found.groupby(['experiment', 'fold', 'seed'])[['valid_loss', 'valid_accuracy']].apply(lambda run: run.tail(5).mean())
    a,b = (found.loc[o].groupby('fold').mean() for o in (name, base(name)))
    d = (100*(a.valid_accuracy - b.valid_accuracy)).dropna()
    return (a.valid_loss/b.valid_loss).dropna(), d.mean(), interval(d, extra=1/5), len(found.loc[name])

def decided(name):
    "What the two rules of results/README.md say of `name`: the second of a part left out, the first of all others."
    ratio,d,_,n = on_folds(name)
    whole = len(ratio) == 6 and n >= 12
    if name in parts: return ('the part stays' if (ratio > 1).sum() >= 5 else 'the part goes') if whole else 'undecided'
    if (ratio > 1).sum() >= 2 or whole and d <= 0: return 'no'
    return 'taken' if whole else 'undecided'


def markdown(head, rows): return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [head, ['---']*len(head), *rows])

def steps_table():
    return markdown(['step', 'parameters', 'seeds', 'test accuracy, %', 'lowest of last 5 epochs', 'train accuracy, %'],
                    [[f'[`{s}.py`]({s}.py)', k['parameters'], k['seeds'], f"**{k['mean']}** ± {k['error']}", k['lowest'], k['train']]
                     for s in steps for k in [summary(s)]])

def seeds_table():
    table,first = late('step3').add_prefix('epoch '),reached('step3')
    table['mean'],table['99.40% or more from epoch'] = table.mean(axis=1),first
    return markdown(['seed', *table], [[str(s), *(f'{a:.2f}' for a in row[:-1]), f'{row.iloc[-1]:.0f}'] for s,row in table.iterrows()])

def changes_table():
    "Each change, sorted by its effect, and whether Holm's correction for all of them leaves it standing at 5%."
    rows = sorted((difference(name).mean(), what, name) for what,name in changes().items())
    p = sorted((stats.ttest_1samp(difference(name), 0).pvalue, name) for _,_,name in rows)
    stands = {name for i,(_,name) in enumerate(p) if all(q*(len(p) - j) <= .05 for j,(q,_) in enumerate(p[:i+1]))}
    return markdown(['change', 'to', 'percentage points', 'seeds', "stands after Holm's correction"],
                    [[what, base(n), words(n, 3), str(len(difference(n))), 'yes' if n in stands else 'no'] for _,what,n in rows])

def folds_table():
    rows = []
    for name in experiments:
        if name in steps or not len(runs[(runs.experiment == name) & (runs.fold > 0)]): continue
        ratio,d,half,n = on_folds(name)
        accuracy = f'{signed(d, 3)} ± {half:.3f}' if len(ratio) == 6 else signed(d, 3)  # of fewer folds an interval says little
        rows.append([experiments[name][2], base(name), f'{(ratio < 1).sum()} of {len(ratio)}', f'{100*(ratio.mean() - 1):+.1f}%', accuracy,
                     str(n), decided(name)])
    return markdown(['change', 'to', 'folds of lower loss', 'mean loss', 'accuracy, percentage points', 'runs', 'by the rule'], rows)

def speed_table():
    times = pd.read_csv(here/'speed.csv')
    ratio = times.div(times['step3.py'], axis=0).median()
    return markdown(['an epoch of step 3, training and testing', 'seconds', 'against step 3'],
                    [[what, f'{times[what].median():.1f}', f'{ratio[what]:.2f} times'] for what in times])

tables = dict(steps=steps_table, seeds=seeds_table, changes=changes_table, folds=folds_table, speed=speed_table)

def fill(path):
    "The text of `path` with its tables, and in a step's docstring the Result and the rows of changes, as the recorded runs give them."
    text = path.read_text(encoding='utf-8')
    text = re.sub(r'(<!-- table (\w+) -->\n).*?(<!-- end -->)', lambda m: f'{m[1]}\n{tables[m[2]]()}\n\n{m[3]}', text, flags=re.S)
    number = r'[+-]\d+\.\d+ ± \d+\.\d+'
    for what,name in changes().items(): text = re.sub(rf'{number}(?=  {re.escape(what)}\n)', words(name), text)
    for name in parts: text = re.sub(rf'{number}(?=  {re.escape(experiments[name][2])}, on the folds\n)', fold_words(name), text)
    if path.stem in steps: text = re.sub(r'(?<=recorded: ).*', lambda _: result(path.stem), text)
    return text

def result(step):
    k,seeds = summary(step),late(step).index
    return f"seeds 0 to {max(seeds)}, last 5 of 15 epochs: mean {k['mean']}% ± {k['error']} (standard error), lowest {k['lowest']}%"


def draw_step(step, before=None):
    "Every seed's test accuracy by epoch, their mean, the train accuracy, and the mean of the step before."
    test,train = late(step, 99).T,epochs[(epochs.experiment == step) & (epochs.fold == 0)].groupby('epoch').train_accuracy.mean()
    ax = test.plot(figsize=(8, 4.5), color='C0', lw=.7, alpha=.6, label='_', ylim=(98, 100), xticks=test.index, ylabel='accuracy, %')
    ax.plot(test.mean(axis=1), color='C0', lw=2.5, label=f'{step}: test, mean of the seeds (thin: each seed)')
    ax.plot(100*train, color='C1', ls='--', label=f'{step}: train, as it trains')
    if before: ax.plot(late(before, 99).mean(), color='grey', lw=2, label=f'{before}: test, mean of the seeds')
    ax.axhline(99.4, color='black', lw=1, ls=':', label='the goal: 99.40%')
    ax.legend(*([o[len(test.columns):] for o in ax.get_legend_handles_labels()]), loc='lower right', fontsize=9)
    plt.tight_layout()
    plt.savefig(here/'pictures'/f'{step}.png', dpi=100)
    plt.close()

def draw_hardest(test, name='step3', n=30):
    "The images of `test` that most seeds of `name` get wrong."
    found = wrong(name)
    taken = pd.DataFrame([(image, digit) for seed in found for image,digit in seed.items()], columns=['image', 'digit'])
    _,axes = plt.subplots(3, n//3, figsize=(13, 5.4))
    for image,ax in zip(taken.image.value_counts().index[:n], axes.flat):
        digits = taken[taken.image == image].digit.value_counts()
        ax.imshow(test.x[image, 0].cpu(), cmap='gray_r')
        ax.set_title(f'label {test.y[image]}\n' + ', '.join(f'{d} ({c})' for d,c in digits.items()), fontsize=9)
        ax.axis('off')
    plt.suptitle(f'The test images that most of the {len(found)} seeds of {name} get wrong: what they are taken for (by how many seeds)')
    plt.tight_layout()
    plt.savefig(here/'pictures'/'hardest.png', dpi=100)
    plt.close()

def photograph(strokes, seed, paper=215, size=240):
    "A digit as if written with a pen and photographed: lines through points (x, y) from 0 to 1, on shaded paper, with noise."
    image,rng = Image.new('L', (size, size), 255),np.random.default_rng(seed)
    for points in strokes: ImageDraw.Draw(image).line([(size*x, size*y) for x,y in points], fill=20, width=11, joint='curve')
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)).rotate(rng.uniform(-8, 8), fillcolor=255))/255
    ground = paper - 70*np.add.outer(np.linspace(0, 1, size), np.linspace(0, .6, size))
    return Image.fromarray((ground*(.25 + .75*image) + rng.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8))

def draw_handwriting(learn):
    "Three digits drawn as if photographed, what the net sees, and what it says."
    arc = [(.5 + .17*np.cos(a), .33 + .13*np.sin(a)) for a in np.linspace(-3, 1.2, 20)]
    written = [[[(.3, .3), (.65, .28), (.45, .75)], [(.4, .53), (.62, .5)]], [arc + [(.33, .75), (.72, .74)]],
               [[(.45, .25), (.36, .55), (.68, .53)], [(.6, .38), (.57, .78)]]]
    photos = [photograph(o, seed) for seed,o in enumerate(written)]
    _,axes = plt.subplots(2, 3, figsize=(6, 4.4))
    with learn.no_bar(), learn.no_logging():
        for photo,(above,below) in zip(photos, axes.T):
            digit,i,p = learn.predict(photo)
            above.imshow(photo, cmap='gray', vmin=0, vmax=255)
            below.imshow(mnist_form(photo), cmap='gray')
            below.set_title(f'"{digit}", probability {p[i]:.3f}', fontsize=10)
    for ax in axes.flat: ax.axis('off')
    axes[0, 0].set_title('drawn by program as if photographed; what the net sees', loc='left', fontsize=10)
    plt.tight_layout()
    plt.savefig(here/'pictures'/'handwriting.png', dpi=100)
    plt.close()


if __name__ == '__main__':
    plt.switch_backend('agg')
    for path in texts: path.write_text(fill(path), encoding='utf-8')
    for step,before in zip(steps, [None, *steps]): draw_step(step, before)
    learn = step3.learner(pretrained=True, data='mnist')
    draw_hardest(learn.dls.valid_ds)
    draw_handwriting(learn)
