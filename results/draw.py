"""Draws the pictures of the READMEs from the recorded runs.

    python results/draw.py   # MNIST is in $MNIST_ROOT
"""
from evidence import epochs, here, margin, mistakes, steps, tested
from experiments import step3
import matplotlib.pyplot as plt, pandas as pd, torch
from data import RandomWarp
from handwriting import mnist_form
from fastai.vision.all import PILImage, TensorImageBW, set_seed, show_images


def save_picture(name):
    plt.tight_layout()
    plt.savefig(here/'pictures'/f'{name}.png', dpi=100)
    plt.close()

def draw_goal(ax):
    ax.axhline(99.4, color='black', lw=1, ls=':', label='the goal: 99.40%')
    ax.legend(loc='lower right', fontsize=9)

def draw_step(step, before=None):
    "Loss and accuracy by epoch: in test of each seed and their mean, in training, and in test of the step before."
    tested = epochs.query('fold == 0').set_index(['experiment', 'epoch', 'seed'])
    _,axes = plt.subplots(1, 2, figsize=(12, 4.5))
    for ax,values in zip(axes, (tested.filter(like='loss'), 100*tested.filter(like='accuracy'))):
        values.columns = ['train', 'test']
        means = values.groupby(['experiment', 'epoch']).mean()
        train = means.train[step]
        ax.plot(values.test[step].unstack(), 'C0', lw=.7, alpha=.6)
        ax.plot(means.test[step], 'C0', lw=2.5, label=f'{step}: test, mean of the seeds (thin: each seed)')
        ax.plot(train, 'C1--', label=f'{step}: train, as it trains')
        if before:
            ax.plot(means.test[before], 'grey', lw=2, label=f'{before}: test, mean of the seeds')
        ax.set_xticks(train.index)
        ax.set_xlabel('epoch')
    loss,accuracy = axes
    loss.set_yscale('log')
    loss.set_ylim(.008, .2)
    loss.set_yticks([.01, .1], ['0.01', '0.1'])
    loss.set_ylabel('loss')
    accuracy.set_ylim(98, 100)
    accuracy.set_ylabel('accuracy, %')
    draw_goal(accuracy)
    save_picture(step)

def draw_parameters():
    "Accuracy against parameters: our nets with their 95% intervals, and public runs (results/public.csv)."
    public = pd.read_csv(here/'public.csv')
    plt.plot(public.parameters, public.accuracy, 'x', color='grey', label='public: single runs')
    for run in public.itertuples():
        plt.annotate(run.letter, (run.parameters + 50, run.accuracy))
    for name in [*steps, 'step3-Model_4', 'step3-Model_5']:
        found = tested.loc[name]
        label = name.removeprefix('step3-')
        plt.errorbar(found.parameters[0], found.accuracy.mean(), margin(found.accuracy),
                     fmt='o', capsize=3, label=label)
    plt.xlabel('parameters')
    plt.ylabel('test accuracy, mean of the last five epochs, %')
    draw_goal(plt.gca())
    save_picture('parameters')

@torch.no_grad()
def draw_p4(net, image):
    "One filter of the first layer in its four rotations, and the map that each makes of a normalized image."
    middle,layer = net[0](image[None]),net[1][0]
    filters = [layer.weight[0].rot90(turns, (1, 2)) for turns in range(4)]
    titles = ['image', 'filter', 'rotated by 90°', 'rotated by 180°', 'rotated by 270°']
    titles += ['its middle', *['map']*4]
    show_images([image, *filters, middle[0], *layer(middle)[0, :4]], 2, titles=titles, figsize=(9, 4))
    save_picture('p4')

def draw_hardest(test):
    "The 30 images of `test` that the seeds of step 3 most often get wrong."
    found = mistakes('step3')
    worst = found.image.value_counts().index[:30]
    titles = []
    for i in worst:
        taken_for = found.taken_for[found.image == i].value_counts()
        said = [f'{digit} ({n})' for digit,n in taken_for.items()]
        titles.append(f'label {test.y[i]}\n{", ".join(said)}')
    title = 'The test images that step 3 most often gets wrong: what they are taken for (by how many seeds)'
    show_images(255 - test.x[worst, 0], 3, titles=titles, figsize=(13, 5.4), suptitle=title)
    save_picture('hardest')

def draw_warps(x):
    "The first eight of the images `x`, and beside each four random warps of it, as step 3 trains on them."
    set_seed(0)
    x = TensorImageBW(x[:8].float()/255)
    warp = RandomWarp(**step3.warp)
    columns = [x, *(warp(x, split_idx=0) for _ in range(4))]
    images = 1 - torch.stack(columns, 1).flatten(0, 1)
    titles = ['image', *['warped']*4]
    show_images(images, 4, titles=titles*8, figsize=(9, 4))
    save_picture('warps')

def draw_handwriting(learn):
    "Three pictures of digits, what the net sees, and what it says."
    photos = [PILImage.create(here/'pictures'/f'{digit}.jpg') for digit in (7, 2, 4)]
    seen = learn.dls.test_dl(map(mnist_form, photos))
    probabilities,_ = learn.get_preds(dl=seen)
    said = [f'"{p.argmax()}", probability {p.max():.3f}' for p in probabilities]
    title = 'Above: drawn by a program, as if photographed; below: what the net sees'
    show_images([*photos, *seen.dataset.x], 2, titles=[None]*3 + said, figsize=(6, 4.4), suptitle=title)
    save_picture('handwriting')


if __name__ == '__main__':
    plt.rc('figure', figsize=(8, 4.5), titlesize=11)
    plt.rc('axes', titlesize=9)
    plt.rc('image', cmap='gray')
    draw_step('step1')
    draw_step('step2', before='step1')
    draw_step('step3', before='step2')
    draw_parameters()
    learn = step3.learner(pretrained=True, data='mnist')
    draw_hardest(learn.dls.valid_ds)
    draw_warps(learn.dls.train_ds.x)
    images,_ = learn.dls.valid.one_batch()
    draw_p4(learn.model, images[0])
    with learn.no_bar(): draw_handwriting(learn)
