"""Computes the tables of the READMEs and the rows in the steps' texts from the recorded runs, and draws the pictures.

    python results/evidence.py   # fills in the tables, draws the pictures; MNIST is in $MNIST_ROOT

The accuracy of a run is the mean over its last five epochs (of 4 epochs: the last one), never its best epoch.
"""
import re

from record import experiments, here, key, step3
import matplotlib.pyplot as plt, numpy as np, pandas as pd, torch
from data import RandomWarp, mnist_form
from fastai.vision.all import PILImage, TensorImageBW, set_seed, show_images
from scipy import stats
from torch.nn import functional as F
from torchvision.utils import save_image

steps = ['step1', 'step2', 'step3']
epochs = pd.read_csv(here/'epochs.csv')
runs = pd.read_csv(here/'runs.csv')


def measure(run):
    "What counts of a run, from its epochs. Accuracies are in percent."
    accuracy = (100*run.valid_accuracy).round(4)
    last = accuracy.tail(5 if len(run) >= 8 else 1)
    below = run.epoch[accuracy < 99.4]
    return pd.Series(dict(
        accuracy=last.mean(), lowest=last.min(), sd=last.std(),
        loss=run.valid_loss.tail(5).mean(),
        epochs=len(run), final=accuracy.iloc[-1],
        late=accuracy.tail(3).min(),       # to compare with the target
        since=max(below, default=0) + 1))  # from this epoch on 99.40% or more

measured = epochs.groupby(key).apply(measure, include_groups=False).join(runs.set_index(key))
tested = measured.xs(0, level='fold')      # evaluated on the test images
held_out = measured.drop(0, level='fold')  # evaluated on a fold of the training images

# The rows of the tables: words -> step, what is compared with what.
pairs = {what: (step.__name__, name, step.__name__) for name,(step,_,what) in experiments.items() if what}
pairs |= {
    'all of step 2, against step 1': ('step2', 'step2', 'step1'),
    'all of step 3, against step 2': ('step3', 'step3', 'step2'),
    'schedule, weight decay and EMA, against step 2 without dropout':
        ('step3', 'without-augmentation', 'step2-without-dropout')}
changes = [what for what,(_,name,_) in pairs.items() if name in tested.index]


def half(values):
    "Half the width of the 95% t-interval of the mean."
    return np.ptp(stats.ttest_1samp(values, 0).confidence_interval())/2

def difference(what):
    "By how many percentage points the accuracy differs: one value for each seed that both sides have."
    _,name,base = pairs[what]
    return (tested.loc[name].accuracy - tested.loc[base].accuracy).dropna()

# A change is clear where p is at most 5% after Holm's correction for all of them.
p = {what: stats.ttest_1samp(difference(what), 0).pvalue for what in changes}
p = pd.Series(p).sort_values()
corrected = (p*np.arange(len(p), 0, -1)).cummax()
clear = {what: 'yes' if corrected[what] <= .05 else 'no' for what in changes}


def words(what, places=2):
    "The mean difference with its 95% interval."
    d = difference(what)
    return f'{d.mean():+z.{places}f} ± {half(d):.{places}f}'  # z: no minus before a zero

def met(name, target=None):
    "How many seeds reach the target of their step (or `target`) in each of the last three epochs."
    target,late = target or experiments[name][0].target,tested.loc[name].late
    return f'{(late > 100*target - 1e-6).sum()} of {len(late)}'

def since(name):
    "The first epoch from which on a seed has 99.40% or more: from the first to the last seed."
    found = tested.loc[name].since
    if (found > tested.loc[name].epochs).any(): return 'not every seed'
    return f'{found.min():.0f} to {found.max():.0f}'

def row(what):
    "A change as a step's text shows it."
    return f'{words(what)}  {met(pairs[what][1]):>8}  {clear[what]:<3}  {what}'

def result(step):
    "The recorded result as a step's text shows it."
    found = tested.loc[step]
    mean = f'mean {found.accuracy.mean():.2f}% ± {half(found.accuracy):.2f} (95% interval)'
    return f'seeds 0 to {len(found)-1}, last 5 of 15 epochs: {mean}, lowest {found.lowest.min():.2f}%'

def mistakes(name):
    "All wrong answers of the seeds of `name`: the image, and the digit that it was taken for."
    answers = ' '.join(tested.loc[name].wrong)
    pairs = re.findall(r'(\d+):(\d)', answers)
    return pd.DataFrame(pairs, columns=['image', 'taken_for']).astype(int)

def confused(name, labels):
    "How often which digit was taken for which other, the most frequent first."
    found = mistakes(name)
    found['digit'] = np.asarray(labels)[found.image]
    return found.value_counts(['digit', 'taken_for'])


def markdown(head, rows):
    lines = []
    for cells in [head, ['---']*len(head), *rows]: lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)

def steps_table():
    names = {f'[`{step}.py`]({step}.py)': step for step in steps}
    names |= {
        '`step3.py --epochs 8`': 'step3-8epochs',
        '`step3.py --epochs 4` (its last epoch)': 'step3-4epochs',
        '`step3.py --model Model_4`': 'step3-Model_4',
        '`step3.py --model Model_5`': 'step3-Model_5'}
    rows = []
    for what,name in names.items():
        found = tested.loc[name]
        accuracy = f'**{found.accuracy.mean():.2f}** ± {half(found.accuracy):.2f}'
        rows.append([what, f'{found.parameters[0]:,}', f'{found.epochs[0]:.0f}', accuracy, f'{found.lowest.min():.2f}',
                     since(name), met(name)])
    head = ['', 'parameters', 'epochs', 'test accuracy, %', 'lowest', 'every seed ≥ 99.40% from epoch', 'target met']
    return markdown(head, rows)

def changes_table():
    rows = []
    for what in sorted(changes, key=lambda what: (pairs[what][0], difference(what).mean())):
        step,name,_ = pairs[what]
        rows.append([what, step[-1], words(what, 3), clear[what], met(name), f'{tested.loc[name].sd.mean():.2f}',
                     since(name)])
    head = ['change', 'step', 'percentage points', 'clear', 'target met', 'standard deviation',
            'every seed ≥ 99.40% from epoch']
    return markdown(head, rows)

def folds_table():
    "Only folds and seeds that both sides have count. The runs of a fold are averaged first."
    rows = []
    for what,(step,name,base) in pairs.items():
        if name == step or name not in held_out.index: continue
        both = held_out.loc[name].merge(held_out.loc[base], on=['fold', 'seed'], suffixes=('', '_base'))
        fold = both.groupby('fold').mean(numeric_only=True)
        ratio = fold.loss/fold.loss_base
        points = (fold.accuracy - fold.accuracy_base).mean()
        rows.append([what, step[-1], f'{(ratio < 1).sum()} of {len(ratio)}', f'{ratio.mean() - 1:+.1%}',
                     f'{points:+z.3f}', str(len(both))])
    head = ['change', 'step', 'folds of lower loss', 'mean loss', 'accuracy, percentage points', 'runs']
    return markdown(head, rows)

def seeds_on_folds():
    "A sentence on step 3's accuracy on the folds."
    seeds = held_out.loc['step3'].groupby('seed')[['accuracy', 'loss']].mean()
    first,fresh = seeds[:2].mean(),seeds[2:].mean()
    return f'Step 3 on the folds: {first.accuracy:.2f}% with seeds 0 and 1 (loss {first.loss:.4f}), ' \
           f'{fresh.accuracy:.2f}% with seeds 2 to {len(seeds) - 1} (loss {fresh.loss:.4f}).'

def speed_table():
    times = pd.read_csv(here/'speed.csv').drop(columns='all of `step3.py --epochs 4`')
    ratio = times.div(times['step3.py'], axis=0).median()
    rows = [[what, f'{times[what].median():.1f}', f'{ratio[what]:.2f}×'] for what in times]
    return markdown(['an epoch of step 3, with testing', 'seconds', 'against step 3'], rows)

tables = dict(steps=steps_table, changes=changes_table, folds=folds_table, seeds=seeds_on_folds, speed=speed_table)

def fill(text):
    "`text` with its tables as the recorded runs give them."
    def filled(found): return f'{found[1]}\n\n{tables[found[2]]()}\n\n{found[3]}'
    return re.sub(r'(?s)(<!-- table (\w+) -->).*?(<!-- end -->)', filled, text)


def save(name):
    plt.tight_layout()
    plt.savefig(here/'pictures'/f'{name}.png', dpi=100)
    plt.close()

def finish(name, **labels):
    "Draw the goal, labels and legend of a plot, and save it."
    plt.axhline(99.4, color='black', lw=1, ls=':', label='the goal: 99.40%')
    plt.gca().set(**labels)
    plt.legend(loc='lower right', fontsize=9)
    save(name)

def draw_step(step, before=None):
    "Every seed's test accuracy by epoch, their mean, the train accuracy, and the mean of the step before."
    def accuracy(step, column='valid_accuracy'):
        return 100*epochs.query('experiment == @step and fold == 0').pivot(index='epoch', columns='seed', values=column)
    train,test = accuracy(step, 'train_accuracy'),accuracy(step)
    plt.plot(test, 'C0', lw=.7, alpha=.6)
    plt.plot(test.mean(axis=1), 'C0', lw=2.5, label=f'{step}: test, mean of the seeds (thin: each seed)')
    plt.plot(train.mean(axis=1), 'C1--', label=f'{step}: train, as it trains')
    if before: plt.plot(accuracy(before).mean(axis=1), 'grey', lw=2, label=f'{before}: test, mean of the seeds')
    finish(step, ylim=(98, 100), xticks=test.index, xlabel='epoch', ylabel='accuracy, %')

def draw_parameters():
    "Accuracy against parameters: our nets with their 95% intervals, and public runs (results/public.csv)."
    public = pd.read_csv(here/'public.csv')
    plt.plot(public.parameters, public.accuracy, 'x', color='grey', label='public: single runs')
    for run in public.itertuples(): plt.annotate(run.letter, (run.parameters + 50, run.accuracy))
    for name in [*steps, 'step3-Model_4', 'step3-Model_5']:
        found = tested.loc[name]
        mean,error = found.accuracy.mean(),half(found.accuracy)
        plt.errorbar(found.parameters[0], mean, error, fmt='o', capsize=3, label=name.removeprefix('step3-'))
    finish('parameters', xlabel='parameters', ylabel='test accuracy, mean of the last five epochs, %')

@torch.no_grad()
def draw_p4(net, image):
    "One filter of the first layer in its four rotations, and the map that each makes of a normalized image."
    layer,middle = net[1][0],net[0](image[None])
    filters = [layer.weight[0].rot90(turns, (1, 2)) for turns in range(4)]
    maps = layer(middle)[0, :4]
    above = ['image', 'filter', 'rotated by 90°', 'rotated by 180°', 'rotated by 270°']
    below = ['its middle', *['map']*4]
    show_images([image, *filters, middle[0], *maps], 2, titles=above + below, figsize=(9, 4))
    save('p4')

def draw_hardest(test):
    "The 30 images of `test` that the seeds of step 3 most often get wrong."
    found = mistakes('step3')
    worst,titles = found.image.value_counts().index[:30],[]
    for i in worst:
        taken_for = found.taken_for[found.image == i].value_counts()
        said = ', '.join(f'{digit} ({n})' for digit,n in taken_for.items())
        titles.append(f'label {test.y[i]}\n{said}')
    what = 'The test images that step 3 most often gets wrong: what they are taken for (by how many seeds)'
    show_images(255 - test.x[worst, 0], 3, titles=titles, figsize=(13, 5.4), suptitle=what)
    save('hardest')

def draw_warps(x):
    "The first eight of the images `x`, and beside each four random warps of it, as step 3 trains on them."
    set_seed(0)
    x = TensorImageBW(x[:8].float()/255)
    warp = RandomWarp(**step3.warp)
    columns = [x, *(warp(x, split_idx=0) for _ in range(4)), 0*x]  # the last one: a gap
    images = 1 - torch.stack(columns, 1).flatten(0, 1).as_subclass(torch.Tensor)
    large = F.interpolate(images, scale_factor=2)
    save_image(large, here/'pictures'/'warps.png', nrow=12, padding=4, pad_value=1)

def draw_handwriting(learn):
    "Three pictures of digits, what the net sees, and what it says."
    photos = [PILImage.create(here/'pictures'/f'{digit}.jpg') for digit in (7, 2, 4)]
    titles = [None]*3
    for photo in photos:
        digit,i,p = learn.predict(photo)
        titles.append(f'"{digit}", probability {p[i]:.3f}')
    show_images([*photos, *map(mnist_form, photos)], 2, titles=titles, figsize=(6, 4.4),
                suptitle='Above: drawn by a program, as if photographed; below: what the net sees')
    save('handwriting')


if __name__ == '__main__':
    for page in (here.parent/'README.md', here/'README.md'):
        text = page.read_text(encoding='utf-8')
        page.write_text(fill(text), encoding='utf-8')
    plt.switch_backend('agg')
    plt.rc('figure', figsize=(8, 4.5), titlesize=11)
    plt.rc('axes', titlesize=9)
    plt.rc('image', cmap='gray')
    for step,before in zip(steps, [None, *steps]): draw_step(step, before)
    draw_parameters()
    learn = step3.learner(pretrained=True, data='mnist')
    draw_hardest(learn.dls.valid_ds)
    draw_warps(learn.dls.train_ds.x)
    draw_p4(learn.model, learn.dls.valid.one_batch()[0][0])
    with learn.no_bar(), learn.no_logging(): draw_handwriting(learn)
