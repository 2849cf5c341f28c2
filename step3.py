"""Step 3: random warps, one cycle of the learning rate, the average of the weights: to the goal

Target
    Step 2 meets the goal in 2 of 10 seeds: a gap of 0.32 percentage points and a fluctuation of 0.06 are left. The net
    stays, but for its dropout; the training changes:
    - Random warps of the training images, new in every epoch: the net never sees an image twice. Against the gap.
    - No dropout: the warps should do its work.
    - One cycle of the learning rate: up to a peak, then down to about zero. So the last steps are small, and the
      weights settle. Against the fluctuation.
    - The average of the weights: single steps scatter around it. It forgets the first batches: the last ninth of the
      batches so far has 65% of the weight. Against the fluctuation, too.
    - Weight decay 0.1 instead of fastai's 0.01: it keeps the weights smaller. Against the gap.
    99.40% in each of the last three epochs, in every seed: the goal of the assignment, "consistently in the last
    epochs" taken literally.
Result
    parameters   7,596
    train        99.79% after the last epoch, without dropout and augmentation
    test         99.62% after the last epoch; last five of 15 epochs: mean 99.62% ± 0.02, lowest 99.54%
    gap          0.17 percentage points: train minus test accuracy after the last epoch
    fluctuation  0.02 percentage points: standard deviation of the test accuracy over a seed's last five epochs
    target met   in 20 of 20 seeds
    Means over seeds 0 to 19, none left out; ± is the 95% interval; "lowest" is the worst of these epochs in any seed.
Analysis
    The gap falls from 0.32 to 0.17, the fluctuation from 0.06 to 0.02.
    Each row changes one part of this step (two, where it names two), or compares two recipes ("against"); rows need not
    add up. Accuracy: by how many percentage points the mean of the last five epochs changes, with its 95% interval over
    ten seeds. Clear: significant after a correction for all rows of all steps, so a "no" may stand beside an interval
    without zero; an effect is "not shown" then. The other columns are the changed recipe's own. (Their changes are in
    results/README.md; such a change counts as shown where its own interval misses zero.)

        accuracy      clear  gap   fluctuation  target met
                             0.17  0.02         20 of 20    step 3 itself
        +0.24 ± 0.04  yes    0.17  0.02         20 of 20    all of step 3, against step 2
        +0.30 ± 0.05  yes    0.43  0.02         10 of 10    schedule, decay and average, against step 2 without dropout
        -0.07 ± 0.03  yes    0.43  0.02         10 of 10    without augmentation
        -0.02 ± 0.03  no     0.23  0.02         10 of 10    without the elastic distortion
        -0.03 ± 0.04  no     0.15  0.02         10 of 10    with the dropout of step 2
        -0.06 ± 0.02  yes    0.19  0.05         10 of 10    without the average of the weights
        -0.01 ± 0.03  no     0.12  0.02         10 of 10    a constant learning rate of 0.006
        -0.34 ± 0.07  yes    0.12  0.12         0 of 10     a constant learning rate of 0.006, without the average
        -0.23 ± 0.05  yes    0.14  0.08         3 of 10     a constant learning rate of 0.003, without the average
        +0.00 ± 0.04  no     0.18  0.02         10 of 10    weight decay 0.01 instead of 0.1

    The gap: warps narrow it. Without them it is 0.43, and 0.07 of accuracy is lost. The elastic distortion has a part
    in it: without it the gap is 0.23; it stays by the rule for held-out images (results/README.md). Dropout is not
    needed beside warps: with it no effect on the accuracy is shown, and an epoch takes 1.38 times as long. Weight
    decay, meant for the gap, has no effect that is shown; it stays by habit.
    The fluctuation: the average lowers it, from 0.12 to 0.02 at a constant rate of 0.006. The cycle alone has 0.05,
    where a steady rise counts, too. With warps, either of them is enough for the goal in every seed. With neither, no
    seed meets it at 0.006, and 3 of 10 at 0.003, though the gap is no wider, 0.12 and 0.14. We explain it so: weights
    that do not settle are unsteady, and worse in the mean, too.
    So cycle and average decide about the goal; warps alone do not (mean accuracy, seeds that meet the goal):
                                    constant rate 0.003, no average   cycle and average
        without warps and dropout   99.24%, 0 of 10 (decay 0.01)      99.54%, 10 of 10
        with warps                  99.39%, 3 of 10                   99.62%, 20 of 20
    With the average a seed stays at 99.40% or more from epoch 2 to 5 on, without it from epoch 9 to 12 on (the earliest
    to the latest seed); after the last epoch no difference is shown, -0.01 ± 0.02. Beside the average the cycle is not
    shown to add accuracy, and widens the gap: at a constant rate of 0.006 the gap is 0.12, and every seed stays at the
    goal from epoch 3 on (looked up afterwards).
    So the cycle stays by habit, and so does its peak of 0.015, near `lr_find`'s minimum, 0.0145 (valley is 0.0010).
    What is left: of the 765 errors of all seeds 9 is read as 4 in 70, 5 as 3 in 67, 4 as 9 in 60.
"""
import report
from data import RandomWarp, mnist_dls
from fastai.vision.all import *
from fastcore.script import call_parse
from models import Model_3, create
from torch.optim.swa_utils import get_ema_multi_avg_fn

target = .994    # each of the last three epochs; the reason is in the text above
epochs = 15      # the most that the rules allow
bs = 256         # images per batch
lr = 1.5e-2      # the peak of the cycle
pct_start = .1   # of all batches, up to the peak; the longer rest anneals the rate to about zero
wd = .1          # weight decay, instead of fastai's default of .01
average = 9      # the average of the weights is over about the last ninth of the batches so far; 0: none
# The limits of a random warp, new for every image in every epoch; the units are `RandomWarp`'s.
warp = dict(degrees=8, shift=1.2, scale=.06, shear=.2, elastic=.4)


class WeightAverage(Callback):
    """Validates the average of the weights instead of the weights, and leaves it in the net after the last epoch:
    single steps scatter around it (Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging").

    The first batches are far from the end, so the average is to forget them. Batch n brings `part`/(n + `part`) of the
    new average, the old average the rest, n/(n + `part`). Multiplied out, batch k of n counts in proportion to about
    (k/n)**(`part`-1): with `part` 9 the last ninth of the batches has 65% of the weight. This is polynomial-decay
    averaging (Shamir and Zhang 2013, "Stochastic Gradient Descent for Non-smooth Optimization: Convergence Results and
    Optimal Averaging Schemes").

    Net and average exchange their values: the average comes into the net before each validation, the weights come back
    before the next batch of training. After the last epoch no batch follows, so the average stays.
    """
    def __init__(self, part): self.part = part
    def before_fit(self): self.mean,self.in_net,self.n = None,False,0
    def before_batch(self):
        if self.training: self.exchange(False)
    def after_batch(self):
        if not self.training: return
        self.n += 1
        weights = self.weights()
        if self.n == 1: self.mean = [weight.detach().clone() for weight in weights]
        decay = self.n/(self.n + self.part)
        get_ema_multi_avg_fn(decay)(self.mean, weights, None)  # mean = decay*mean + (1-decay)*weights; no counter
    def before_validate(self): self.exchange(True)
    def after_fit(self): self.mean = None
    def weights(self):
        "Weights and batch norm's statistics; a shared one once; no whole numbers, such as batch norm's counter."
        found = [*self.model.parameters(), *self.model.buffers()]
        return [weight for weight in found if weight.is_floating_point()]
    def exchange(self, to_net):
        if not self.mean or self.in_net == to_net: return
        for mean,weight in zip(self.mean, self.weights()): mean.data,weight.data = weight.data,mean.data
        self.in_net = to_net


def learner(model=Model_3, seed=0, bs=bs, wd=wd, warp=warp, average=average, pretrained=False, **kwargs):
    """An untrained fastai `Learner`; net, loaders and all random choices follow `seed`. `kwargs`: those of `mnist_dls`.
    Random numbers are global: train a learner before you make the next one.
    With `pretrained` it has the weights of the recorded seed 0, chosen beforehand, not the best."""
    set_seed(seed, reproducible=True)
    dls = mnist_dls(bs=bs, tfms=RandomWarp(**warp), **kwargs)
    net = create(model).to(dls.device)
    if pretrained: net.load_state_dict(torch.load(Path(__file__).parent/'results'/'step3.pth', weights_only=True))
    cbs = [WeightAverage(average)] if average else []
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, wd=wd, cbs=cbs, model_dir='runs')
    learn.recorder.train_metrics = True
    return learn


def train(epochs=epochs, lr=lr, pct_start=pct_start, cbs=None, **kwargs):
    "The `Learner` of `learner(**kwargs)`, trained."
    learn = learner(**kwargs)
    learn.fit_one_cycle(epochs, lr, pct_start=pct_start, cbs=[TerminateOnNaNCallback(), *L(cbs)])
    return learn


def main(
    epochs:int=epochs,    # Passes over the training images; the rule is at most 15
    lr:float=lr,          # Learning rate, at the peak of its cycle
    seed:int=0,           # Seed of all random choices: same seed, machine and thread count, same numbers
    model:str='Model_3',  # Net to train, a class of models.py
    data:str='auto'       # mnist; digits (scikit-learn's); auto: digits where MNIST cannot be had; or a folder
):
    """Train step 3, print its Target / Result / Analysis. Exit status: 0 target met or run not judged (not MNIST, fewer
    than 3 epochs, more than 15); 1 missed or failed; 2 wrong option; 130 interrupted."""
    return report.run(sys.modules[__name__], model, epochs, lr, seed, data)


if __name__ == '__main__': sys.exit(call_parse(main))
