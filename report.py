"What the steps share: repeatability, a row per epoch, the summary with its verdict, the files in `runs/`, checks of the command line."
import argparse, atexit, contextlib, csv, io, signal, weakref
try: import fcntl
except ImportError: fcntl = None  # Windows: two runs at the same time are not kept apart there

from fastai.vision.all import *
from fastcore.script import CliError

import models
from data import clean_train, not_mnist
from models import budget, count

runs = Path('runs')  # where each step saves, below the working directory
max_epochs = 15      # the rule
judged = 3           # each of the last so many epochs must reach the target
look = 50            # batches on a GPU between two looks at the loss: each waits until the GPU is done
nets = {name: net for name,net in vars(models).items() if name.startswith('Model_')}
columns = ['epoch', 'train_loss', 'train_accuracy', 'test_loss', 'test_accuracy', 'seconds']


def repeatable(seed):
    """Seed every generator, and compute on $OMP_NUM_THREADS threads, else on two where there are two cores.

    Two by measurement: the second one gains some time, and nets this small leave little to gain (README, "How fast it is").
    Same seed, machine and thread count: same numbers to the last bit.
    """
    set_seed(seed, reproducible=True)
    threads = os.environ.get('OMP_NUM_THREADS', '')
    torch.set_num_threads(max(int(threads), 1) if threads.isdigit() else min(2, os.cpu_count()))


def folder(step, dls):
    "Where a run of `step` on `dls` saves: what is not MNIST is kept apart and called so."
    return runs/step/('not-MNIST' if not_mnist in dls.train_ds.name else '')


def tidy(path):
    "Remove `path` and its parents as far as they are empty folders: a run that saved nothing leaves nothing."
    with contextlib.suppress(OSError):
        for o in (path, *path.parents):
            if o == runs or runs in o.parents: o.rmdir()


def lock(path):
    "Hold `path`, a folder, against a second run until what this returns is closed; raises `BlockingIOError` if one holds it."
    if not fcntl: return os.open(os.devnull, os.O_RDONLY)
    held = os.open(path, os.O_RDONLY)
    try: fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise
    return held


class CrossEntropy(nn.CrossEntropyLoss):
    "torch's, with what fastai's `CrossEntropyLossFlat` has for predictions, but without its detour over other shapes and types."
    def activation(self, x): return x.softmax(-1)
    def decodes(self, x): return x.argmax(-1)


def accuracy(logits, y):
    "Fraction of the labels `y` (n,) that have the largest of their `logits` (n, 10): fastai's, without the same detour."
    return (logits.argmax(-1) == y).float().mean()


class SmoothLoss(AvgSmoothLoss):
    "fastai's running average of the loss, on the device of the loss."
    def accumulate(self, learn):
        self.count += 1
        self.val = torch.lerp(learn.loss.detach(), self.val.to(learn.loss.device), self.beta)


class LeanLearner(Learner):
    """A `Learner` that comes to the same numbers with less to do in each batch.

    Callbacks are called for the events that they have, not for all; the net gets plain tensors, not fastai's subclasses; loss and
    metrics stay on their device until the epoch ends, so that no batch waits for a GPU.
    """
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.recorder.smooth_loss = SmoothLoss()
    def _split(self, b):
        super()._split([o.as_subclass(Tensor) for o in b])
    def to_detach(self, b, cpu=True, gather=True):
        return b.detach() if isinstance(b, Tensor) and b.ndim == 0 else super().to_detach(b, cpu, gather)
    def __call__(self, event_name):
        if not isinstance(event_name, str): return super().__call__(event_name)
        for cb in sorted(self.cbs, key=lambda o: o.order):
            if event_name == 'after_fit' or hasattr(type(cb), event_name) or event_name in vars(cb): cb(event_name)


class History(Callback):
    """Keeps a row per epoch and the learning rate of every batch.

    The `columns` of a row: epochs count from 1, accuracies are fractions, `train_loss` is fastai's running average over the last
    batches, `train_accuracy` that of the epoch as it trains, all to six places.
    """
    order = ProgressCallback.order - 1  # after `Recorder`, before the bars
    rows = rates = ()

    def after_create(self):
        self.recorder.train_metrics = True
        if not sys.stdout.isatty():  # fastprogress would draw its bars into logs, too: plain rows there
            self.learn.remove_cb(self.learn.progress)
            self.learn.logger = noop

    def before_fit(self):
        self.run,self.new = not hasattr(self.learn, 'lr_finder'),True
        self.recorder.metric_names = self.recorder.metric_names.map(lambda o: o.replace('valid_', 'test_'))

    def before_epoch(self):
        self.started = time.perf_counter()
        self.recorder.log[0] = self.epoch+1  # fastai's table counts from 0

    def before_train(self):  # not `before_fit`, which `validate` and `get_preds` call, too
        if self.new: self.start([], self.recorder.lrs)

    def resume(self, rows, rates):
        "Go on after `rows`, as if this fit had trained them."
        self.recorder.lrs[:] = rates
        self.start(rows, self.recorder.lrs)

    def start(self, rows, rates):
        self.new,self.rows,self.rates = False,rows,rates
        train,test = self.dls.train_ds,self.dls.valid_ds
        print(f'{type(self.model).__name__} on {train.name} ({len(train):,} images), judged on {test.name} ({len(test):,})')
        if not hasattr(self.learn, 'progress'): print(' '.join(f'{c:>14}' for c in columns), flush=True)

    def after_epoch(self):
        if self.new: return
        if self.epoch >= len(self.rows):  # else it was there before: the run was resumed
            values = dict(zip(self.recorder.metric_names[1:], self.recorder.values[-1]))
            row = [self.epoch+1, *(round(float(values[o]), 6) for o in columns[1:5]), round(time.perf_counter() - self.started, 2)]
            self.rows.append(dict(zip(columns, row)))
        row = list(self.rows[self.epoch].values())
        if not hasattr(self.learn, 'progress'):
            print(f'{row[0]:>14} ' + ' '.join(f'{o:>14.4f}' for o in row[1:5]) + f' {row[5]:>14.1f}', flush=True)


class Guard(Callback):
    """Loses nothing: a checkpoint after each epoch, an orderly end on Ctrl-C and SIGTERM, an end at once when the loss is no number.

    `given` are the command line's values that make the run what it is. Resumed, a run is the one that was never interrupted, to
    the last bit: net, optimizer, place in the schedule, rows, and the random states of torch, Python and the loaders come back.
    """
    order = ProgressCallback.order + 1
    stopped = None  # the signal that ended the training

    def __init__(self, step, resume, **given):
        self.step,self.resume,self.given = step,resume,given
        self.on_signal(self.leave)

    def on_signal(self, do):
        for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, do)

    @staticmethod  # a bound method would keep the guard, and with it the lock
    def leave(signum, frame): sys.exit(128 + signum)

    def stop(self, signum, frame):
        "End the training after this batch, and at once when told a second time."
        self.stopped = signum
        self.on_signal(self.leave)

    def before_fit(self):
        self.folder = folder(self.step, self.dls)
        self.checkpoint = self.folder/'checkpoint.pth'
        self.recipe = dict(**self.given, net=type(self.model).__name__, data=self.dls.train_ds.name, device=str(self.dls.device),
                           threads=torch.get_num_threads(), torch=str(torch.__version__))
        if self.given['bs'] > len(self.dls.train_ds):
            print(f"--bs: a batch of {self.given['bs']} is more than the {len(self.dls.train_ds):,} training images", file=sys.stderr)
            sys.exit(2)
        if self.n_epoch > max_epochs: print(f'*** {self.n_epoch} epochs: the rule is at most {max_epochs}, so the target will not be judged.', file=sys.stderr)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atexit.register(tidy, self.folder)
            weakref.finalize(self, os.close, lock(self.folder))
        except BlockingIOError: sys.exit(f'Another run is at work in {self.folder}. Wait for it, or start this one in another working directory.')
        except OSError as e: sys.exit(f'{self.folder}: {e.strerror}. Nothing was trained, since nothing could be saved.')
        self.on_signal(self.stop)
        if self.resume: self.load()
        elif self.checkpoint.exists(): print(f'*** Starting anew, not with the interrupted run that --resume would go on with ({self.checkpoint}).', file=sys.stderr)

    def nets(self):
        "The net that is trained, and the running mean of its weights where a step has one."
        return [self.model, *([self.ema.mean] if hasattr(self.learn, 'ema') else [])]

    def before_epoch(self):
        if self.epoch < len(self.history.rows) and not self.history.new:
            self.recorder.log = L(list(self.history.rows[self.epoch].values())[:5])
            raise CancelEpochException

    def after_loss(self):
        if self.loss.device.type != 'cpu' and (self.iter+1) % look and self.iter+1 < self.n_iter: return  # what is no number stays no number
        if self.loss.isfinite(): return
        kept = f' The last whole epoch is kept in {self.checkpoint}.' if self.checkpoint.exists() else ''
        sys.exit(f'Stopped in epoch {self.epoch+1}, {"batch" if self.training else "test batch"} {self.iter+1}: the loss is {self.loss.item()}. '
                 f'A lower --lr may help.{kept}')

    def after_batch(self):
        if self.stopped: raise CancelFitException

    def after_epoch(self):
        if self.history.new or self.epoch+1 < len(self.history.rows): return
        smooth,opt = self.recorder.smooth_loss,self.opt.state_dict()['state']  # a dict by torch's optimizers, a list by fastai's
        state = dict(recipe=self.recipe, rows=self.history.rows, rates=[float(r) for r in self.history.rates],
                     nets=[n.state_dict() for n in self.nets()], opt=opt if isinstance(opt, dict) else [dict(s) for s in opt],
                     smooth=(smooth.count, smooth.val),
                     torch=torch.get_rng_state(), cuda=torch.cuda.get_rng_state_all(), python=random.getstate(),
                     loaders=[dl.rng.getstate() for dl in self.dls])
        try: write_aside(lambda p: write_tensors(state, p), self.checkpoint)
        except OSError as e: print(f'*** {self.checkpoint}: {e.strerror}. Training goes on, but --resume could not.', file=sys.stderr)

    def load(self):
        try: state = torch.load(self.checkpoint, weights_only=True)  # never runs code that a file brings along
        except FileNotFoundError: sys.exit(f'There is no {self.checkpoint} to resume: run without --resume.')
        except Exception: sys.exit(f'{self.checkpoint} is no whole checkpoint of these steps. Delete it and run without --resume.')
        other = [f'{k} {state["recipe"].get(k)} there, {v} here' for k,v in self.recipe.items() if state['recipe'].get(k) != v]
        if other: sys.exit(f'{self.checkpoint} is of another run: {"; ".join(other)}.')
        for net,values in zip(self.nets(), state['nets']): net.load_state_dict(values)
        self.opt.load_state_dict({**self.opt.state_dict(), 'state': state['opt']})
        self.recorder.smooth_loss.count,self.recorder.smooth_loss.val = state['smooth']
        self.history.resume(state['rows'], state['rates'])
        torch.set_rng_state(state['torch'])
        torch.cuda.set_rng_state_all(state['cuda'])
        random.setstate(state['python'])
        for dl,rng in zip(self.dls, state['loaders']): dl.rng.setstate(rng)

    def after_fit(self): self.on_signal(self.leave)


def write_csv(rows, path):
    "Write rows of `History` to `path`: epochs from 1, accuracies as fractions."
    with open(path, 'w', newline='') as f:
        out = csv.DictWriter(f, columns, lineterminator='\n')
        out.writeheader()
        out.writerows(rows)


def measured(rows):
    "The last five epochs' test accuracies in words: what recorded evidence and a new run are compared by."
    last = [100*r['test_accuracy'] for r in rows[-5:]]
    return f"last {len(last)} of {len(rows)} epochs: mean {sum(last)/len(last):.2f}%, lowest {min(last):.2f}%"


def verdict(rows, epochs, target, on_mnist=True, stopped=None):
    """(exit status, verdict in words): 0 when each of the last `judged` epochs reached `target` or is not judged, else 1.

    After the signal `stopped`, the shell's status for it.
    """
    last = [r['test_accuracy'] for r in rows[-judged:]]
    if stopped:              return 128 + stopped, f"stopped after epoch {len(rows)}, target not judged{'; --resume goes on from there' if rows else ''}"
    if not on_mnist:         return 0, f'not judged: {not_mnist}'
    if epochs > max_epochs:  return 0, f'not judged: {epochs} epochs, the rule is at most {max_epochs}'
    if len(rows) < epochs:   return 1, f'TARGET MISSED: training ended after {len(rows)} of {epochs} epochs'
    met = all(a >= target for a in last)
    return (0 if met else 1), f"{'target met' if met else 'TARGET MISSED'}: {target:.2%} or more in each of the last {len(last)} epochs"


def write_aside(make, path):
    "Let `make(path)` write `path`, aside first, so that a full disk or a crash leaves the old file whole."
    aside = path.with_name('.' + path.name)
    try:
        make(aside)
        os.replace(aside, path)
    finally: aside.unlink(missing_ok=True)


def write_tensors(state, path):
    "`torch.save` by way of memory: a full disk is then an `OSError` like any other."
    memory = io.BytesIO()
    torch.save(state, memory)
    path.write_bytes(memory.getvalue())


def save(make, path):
    "`write_aside`, and list it."
    write_aside(make, path)
    print(f'  {path}')


def figure(draw, title, path):
    "Draw with fastai or matplotlib by `draw()`, then save the current figure to `path` under `title`."
    draw()
    plt.suptitle(title)
    plt.tight_layout(rect=(0, 0, 1, .98))
    save(lambda aside: plt.savefig(aside, format='png', dpi=100), path)
    plt.close('all')


def curves(rows, rates, target):
    "Loss and accuracy per epoch for train and test, with the target, and the learning rate per batch."
    epochs = [r['epoch'] for r in rows]
    _,(loss,accuracy,rate) = plt.subplots(1, 3, figsize=(15, 4.5))
    for part,style in (('train', 'o--'), ('test', 'o-')):
        loss    .plot(epochs, [r[f'{part}_loss'] for r in rows], style, label=part)
        accuracy.plot(epochs, [100*r[f'{part}_accuracy'] for r in rows], style, label=part)
    accuracy.axhline(100*target, color='black', lw=1, ls=':', label=f'target {target:.2%}')
    lowest = min(100*target, *(100*r['test_accuracy'] for r in rows[-5:]))
    accuracy.set_ylim(lowest - 1, 100.1)  # the first epochs would hide the last ones
    loss.set_yscale('log')
    rate.plot(np.arange(1, len(rates)+1) * len(rows)/len(rates), rates)
    rate.set_ylim(0, 1.1*max(rates))
    for ax,name in ((loss, 'loss'), (accuracy, 'accuracy, %'), (rate, 'learning rate')): ax.set(xlabel='epoch', ylabel=name)
    for ax in (loss, accuracy): ax.legend()
    for ax in (loss, accuracy, rate): ax.xaxis.get_major_locator().set_params(integer=True)


def save_run(learn, folder, target):
    "Save history, weights and pictures of a trained `learn` into `folder`, and list them."
    rows,rates,name = learn.history.rows,learn.history.rates,learn.dls.valid_ds.name
    net = type(learn.model).__name__
    plt.switch_backend('agg')
    folder.mkdir(parents=True, exist_ok=True)
    print('saved')
    save(lambda p: write_csv(rows, p), folder/'history.csv')
    save(lambda p: write_tensors(learn.model.state_dict(), p), folder/'weights.pth')
    figure(lambda: learn.dls.train.show_batch(max_n=36, figsize=(9, 9.5)), f'What {net} is trained on: {learn.dls.train_ds.name}', folder/'samples.png')
    figure(lambda: curves(rows, rates, target), f'{net} on {name}', folder/'curves.png')
    _,truth,guess,losses = learn.get_preds(with_decoded=True, with_loss=True)
    interp = ClassificationInterpretation(learn, learn.dls.valid, losses)
    figure(lambda: interp.plot_confusion_matrix(figsize=(7, 7), title=''), f'{net} on {name}', folder/'confusion.png')
    ranks = (guess != truth)[losses.argsort(descending=True)].nonzero().flatten().tolist()  # of the mistakes, by loss
    if ranks: figure(lambda: interp.plot_top_losses(ranks[:16], figsize=(11, 12)), f'The most confident mistakes of {net} '
                     f'({len(ranks)} in all) on {name}\nprediction/truth / loss / probability of the prediction', folder/'mistakes.png')


def finish(learn, guard, doc, target, epochs):
    "Save the run, print the step's Target / Result / Analysis with what was measured, and return the exit status."
    rows,device,on_mnist = learn.history.rows,learn.dls.device,not_mnist not in learn.dls.train_ds.name
    status,words = verdict(rows, epochs, target, on_mnist, guard.stopped)
    if guard.stopped: return print(f'\n{words}') or status
    unsaved = None
    try: save_run(learn, guard.folder, target)
    except OSError as e: unsaved = f'{e.filename or guard.step}: {e.strerror}. Of this run only what is listed above was saved; make room or run elsewhere.'
    with learn.no_bar(): clean = learn.validate(dl=clean_train(learn.dls))[1]
    last,seconds = [r['test_accuracy'] for r in rows[-5:]],sum(r['seconds'] for r in rows)
    where = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, threads: {torch.get_num_threads()}'
    print(f"""
{doc.strip().format(this_run=measured(rows) + ('' if on_mnist else f', on {not_mnist}'))}

This run
    data         {learn.dls.train_ds.name}, judged on {learn.dls.valid_ds.name}
    net          {type(learn.model).__name__}, {count(learn.model):,} parameters of a budget of fewer than {budget:,}
    epochs       {len(rows)} of at most {max_epochs}
    last epochs  {' '.join(f"{a:.2%}" for a in last)}: mean {sum(last)/len(last):.2%}, lowest {min(last):.2%} (target {target:.2%})
    gap          {100*(clean - last[-1]):+.2f} points: {clean:.2%} on the training images without augmentation, {last[-1]:.2%} on the test images
    time         {int(seconds//60)} min {seconds%60:.0f} s of training and testing; {where}
    verdict      {words}""")
    if unsaved: raise CliError(unsaved)
    guard.checkpoint.unlink(missing_ok=True)  # the run is whole: nothing is left to resume
    return status


def find(learn, step):
    "Run fastai's `lr_find`, print its four suggestions, save its picture, and return exit status 0."
    where = folder(step, learn.dls)
    plt.switch_backend('agg')
    try: where.mkdir(parents=True, exist_ok=True)
    except OSError as e: raise CliError(f'{where}: {e.strerror}. The picture could not be saved.') from None
    atexit.register(tidy, where)
    try: found = learn.lr_find(suggest_funcs=(valley, slide, steep, minimum))
    except Exception as e:
        if all(math.isfinite(o) for o in learn.recorder.losses[:20]): raise
        raise CliError('lr_find diverged from its first steps on: no rate can be suggested for this net and these images.') from e
    for name,rate in found._asdict().items(): print(f'{name:<8} {rate:.2e}')
    figure(lambda: None, f'{type(learn.model).__name__} on {learn.dls.train_ds.name}', where/'lr_find.png')
    return 0


def checked(kind, accept, wanted):
    "A converter for the command line: `kind(text)` if `accept`ed, else an error that says what is `wanted`."
    def convert(text):
        try: value = kind(text)
        except ValueError: value = None
        if value is None or not accept(value): raise argparse.ArgumentTypeError(f'{text!r} is not {wanted}')
        return value
    convert.__name__ = wanted
    return convert

natural = checked(int,   lambda n: n >= 1, 'a whole number of 1 or more')
whole   = checked(int,   lambda n: 0 <= n < 2**32, 'a whole number of 0 or more')
several = checked(int,   lambda n: n >= 2, 'a whole number of 2 or more')
rate    = checked(float, lambda r: 0 < r < math.inf, 'a positive number')
net     = checked(str,   nets.__contains__, 'one of ' + ', '.join(nets))
source  = checked(str,   lambda s: s in ('auto', 'mnist', 'digits'), 'auto, mnist or digits')
