"What the steps share: an end at NaN, checkpoints, the files and the summary of a run, the command line."
import contextlib, inspect, io, signal, sys, threading

from data import clean_train, not_mnist  # first: it silences a warning of fastai's import
from fastai.vision.all import *
from fastcore.script import CliError

import models  # after fastai, which has a `models` of its own
from models import budget, count, table

max_epochs = 15      # the rule
judged = 3           # each of the last so many epochs must reach the target
nets = {name: net for name,net in vars(models).items() if name.startswith('Model_')}


class StopAtNaN(Callback):
    "Ends a fit by a `FloatingPointError` at the first loss that is not finite: all that follows would be lost."
    def before_fit(self): self.run = not hasattr(self.learn, 'lr_finder')  # which diverges on purpose
    def after_loss(self):
        if not self.loss.isfinite().all(): raise FloatingPointError(
            f'Stopped in epoch {self.epoch+1}, {"batch" if self.training else "test batch"} {self.iter+1}: the loss is {self.loss.mean().item()}. A lower learning rate may help.')


def history(learn):
    "The last fit of `learn`, a row per epoch, from 1: losses and accuracies (fractions), of training as the net trains and of validation."
    names = learn.recorder.metric_names[1:-1]  # without epoch and time
    values = [[float(v) for v in row] for row in learn.recorder.values]
    return pd.DataFrame(values, columns=names, index=pd.RangeIndex(1, len(values)+1, name='epoch')).round(6)


# ---- Files: written aside first, so that a full disk or a crash leaves the old file whole

def write(make, path):
    "Let `make(file)` write `path`, a file opened in binary mode."
    aside,file = path.with_name(f'.{path.name}'),io.BytesIO()
    make(file)
    try:
        aside.write_bytes(file.getvalue())
        os.replace(aside, path)
    finally: aside.unlink(missing_ok=True)


class Checkpoint(Callback):
    """Saves all that a run needs to go on after each epoch, and with `resume` goes on: to the last bit as if never interrupted.

    `given` are the values of the command line that make the run what it is: a checkpoint of another run is refused.
    """
    order = Recorder.order + 1
    done = 0  # whole epochs so far

    def __init__(self, step, resume, **given): self.step,self.resume,self.given = step,resume,given

    def before_fit(self):
        train,valid = self.dls.train_ds,self.dls.valid_ds
        self.folder = Path('runs')/self.step/('not-MNIST' if not_mnist in train.name else '')
        self.file = self.folder/'checkpoint.pth'
        self.recipe = dict(**self.given, net=type(self.model).__name__, data=train.name, device=str(self.dls.device),
                           threads=torch.get_num_threads(), torch=str(torch.__version__))
        if self.given['bs'] > len(train): raise CliError(f"--bs: a batch of {self.given['bs']} is more than the {len(train):,} training images.")
        try: self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e: raise CliError(f'{self.folder}: {e.strerror}. Nothing was trained, since nothing could be saved.') from None
        print(f'{self.recipe["net"]} on {train.name} ({len(train):,} images), judged on {valid.name} ({len(valid):,})', flush=True)
        self.old = self.load() if self.resume else []
        if not self.resume and self.file.exists():
            print(f'*** Starting anew, not with the interrupted run that --resume would go on with ({self.file}).', file=sys.stderr)

    def before_epoch(self):
        self.recorder.log[0] = self.epoch+1  # fastai counts from 0
        if self.epoch < len(self.old):
            self.recorder.log += L(self.old[self.epoch])
            raise CancelEpochException

    def nets(self): return [self.model, *([self.ema.mean] if hasattr(self.learn, 'ema') else [])]

    def after_epoch(self):
        self.done = self.epoch+1
        if self.done <= len(self.old): return
        smooth = self.recorder.smooth_loss
        state = dict(recipe=self.recipe, values=[[float(v) for v in row] for row in self.recorder.values], lrs=[float(o) for o in self.recorder.lrs],
                     nets=[o.state_dict() for o in self.nets()], opt=[dict(o) for o in self.opt.state_dict()['state']], smooth=(smooth.count, float(smooth.val)),
                     torch=torch.get_rng_state(), cuda=torch.cuda.get_rng_state_all(), python=random.getstate(),
                     loaders=[dl.rng.getstate() for dl in self.dls])
        try: write(partial(torch.save, state), self.file)
        except OSError as e: print(f'*** {self.file}: {e.strerror}. Training goes on, but --resume could not.', file=sys.stderr)

    def load(self):
        "Put the state of the checkpoint in place, and return the values of its epochs."
        try: state = torch.load(self.file, weights_only=True, map_location=self.dls.device)  # never runs code that a file brings along
        except FileNotFoundError: raise CliError(f'There is no {self.file} to resume: run without --resume.') from None
        except Exception: state = None
        if not isinstance(state, dict) or not isinstance(state.get('recipe'), dict):
            raise CliError(f'{self.file} is no whole checkpoint of these steps. Delete it and run without --resume.')
        other = [f'{k} {state["recipe"].get(k)} there, {v} here' for k,v in self.recipe.items() if state['recipe'].get(k) != v]
        if other: raise CliError(f'{self.file} is of another run: {"; ".join(other)}.')
        for net,values in zip(self.nets(), state['nets']): net.load_state_dict(values)
        self.opt.load_state_dict({**self.opt.state_dict(), 'state': state['opt']})
        self.recorder.smooth_loss.count,self.recorder.smooth_loss.val = state['smooth'][0],tensor(state['smooth'][1])
        self.recorder.lrs[:] = state['lrs']
        torch.set_rng_state(state['torch'].cpu())
        torch.cuda.set_rng_state_all([o.cpu() for o in state['cuda']])
        random.setstate(state['python'])
        for dl,rng in zip(self.dls, state['loaders']): dl.rng.setstate(rng)
        return state['values']


class PlainLog(Callback):
    "A line per epoch in place of fastai's bars, whose carriage returns are for a terminal."
    order = Recorder.order + 2
    def before_fit(self):
        self.progress.run,self.learn.logger = False,self.line
        self.line(self.recorder.metric_names)
    def line(self, values): print(' '.join(f'{o:>14.4f}' if isinstance(o, float) else f'{o:>14}' for o in values), flush=True)
    def after_fit(self): self.learn.logger = print


# ---- What a run leaves

def figure(draw, title, path):
    "Draw with fastai or matplotlib by `draw()`, save the figure to `path` under `title`, and list it."
    draw()
    fig = plt.gcf()
    fig.suptitle(title)
    fig.tight_layout(rect=(0, 0, 1, .98))
    write(partial(fig.savefig, format='png', dpi=100), path)
    plt.close(fig)
    print(f'  {path}')

def curves(rows, rates, target):
    "Loss and accuracy per epoch for train and test, with the target, and the learning rate per batch."
    _,(loss,accuracy,rate) = plt.subplots(1, 3, figsize=(15, 4.5))
    for part,label,style in (('train', 'train, as it trains', 'o--'), ('valid', 'test', 'o-')):
        loss    .plot(rows[f'{part}_loss'], style, label=label)
        accuracy.plot(100*rows[f'{part}_accuracy'], style, label=label)
    accuracy.axhline(100*target, color='black', lw=1, ls=':', label=f'target {target:.2%}')
    accuracy.set_ylim(100*min(target, rows.valid_accuracy[-5:].min()) - 1, 100.1)  # the first epochs would hide the last ones
    loss.set_yscale('log')
    rate.plot(np.arange(1, len(rates)+1) * len(rows)/len(rates), rates)
    rate.set_ylim(0, 1.1*max(rates))
    for ax,name in ((loss, 'loss'), (accuracy, 'accuracy, %'), (rate, 'learning rate')):
        ax.set(xlabel='epoch', ylabel=name)
        ax.xaxis.get_major_locator().set_params(integer=True)
    loss.legend()
    accuracy.legend(loc='lower right')  # the last epochs are at the top

def save_run(learn, rows, rates, folder, target):
    "Save history, weights and pictures of a trained `learn` into `folder`, and list them."
    net,name = type(learn.model).__name__,learn.dls.valid_ds.name
    print('saved')
    for make,file in ((rows.to_csv, 'history.csv'), (partial(torch.save, learn.model.state_dict()), 'weights.pth')):
        write(make, folder/file)
        print(f'  {folder/file}')
    was = plt.get_backend()
    plt.switch_backend('agg')  # no windows, whatever the user's backend is
    try:
        figure(lambda: learn.dls.train.show_batch(max_n=36, figsize=(9, 9.5)), f'What {net} is trained on: {learn.dls.train_ds.name}', folder/'samples.png')
        figure(lambda: curves(rows, rates, target), f'{net} on {name}', folder/'curves.png')
        interp = ClassificationInterpretation.from_learner(learn)
        figure(lambda: interp.plot_confusion_matrix(figsize=(7, 7), title=''), f'{net} on {name}', folder/'confusion.png')
        figure(lambda: interp.plot_top_losses(16, figsize=(11, 12)), f'The largest losses of {net} on {name}: prediction/label / loss / probability', folder/'top_losses.png')
    finally: plt.switch_backend(was)

def measured(rows):
    "The last five epochs' test accuracies in words: what recorded evidence and a new run are compared by."
    last = 100*rows.valid_accuracy[-5:]
    return f'last {len(last)} of {len(rows)} epochs: mean {last.mean():.2f}%, lowest {last.min():.2f}%'

def verdict(rows, target, on_mnist=True):
    "(exit status, words): 0 when each of the last `judged` epochs reached `target`, or when the run is not judged; else 1."
    if not on_mnist:           return 0, f'not judged: {not_mnist}'
    if len(rows) > max_epochs: return 0, f'not judged: {len(rows)} epochs, the rule is at most {max_epochs}'
    last = rows.valid_accuracy[-judged:]
    met = (last >= target).all()
    return int(not met), f"{'target met' if met else 'TARGET MISSED'}: {target:.2%} or more in each of the last {len(last)} epochs"

def finish(learn, saved, doc, target, seconds):
    "Save the run, print the step's Target / Result / Analysis with what was measured, and return the exit status."
    rows,rates,unsaved = history(learn),learn.recorder.lrs,None
    device,on_mnist = learn.dls.device,not_mnist not in learn.dls.train_ds.name
    with learn.no_bar(), learn.no_logging():
        try: save_run(learn, rows, rates, saved.folder, target)
        except OSError as e: unsaved = f'{e.filename or saved.folder}: {e.strerror}. Of this run only what is listed above was saved; make room or run elsewhere.'
        clean = learn.validate(dl=clean_train(learn.dls))[1]
    status,words = verdict(rows, target, on_mnist)
    last = rows.valid_accuracy[-5:]
    where = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, threads: {torch.get_num_threads()}'
    print(f"""
{doc.strip().format(this_run=measured(rows) + ('' if on_mnist else f', on {not_mnist}'))}

This run
    data         {learn.dls.train_ds.name}, judged on {learn.dls.valid_ds.name}
    net          {type(learn.model).__name__}, {count(learn.model):,} parameters of a budget of fewer than {budget:,}
    epochs       {len(rows)} of at most {max_epochs}
    last epochs  {' '.join(f"{a:.2%}" for a in last)}: mean {last.mean():.2%}, lowest {last.min():.2%} (target {target:.2%})
    gap          {100*(clean - last.iloc[-1]):+.2f} points: {clean:.2%} on the training images without augmentation, {last.iloc[-1]:.2%} on the test images
    time         {int(seconds//60)} min {seconds%60:.0f} s of training and testing; {where}
    verdict      {words}""")
    if unsaved: raise CliError(unsaved)
    saved.file.unlink(missing_ok=True)  # the run is whole: nothing is left to resume
    return status


# ---- The command line

@contextlib.contextmanager
def sigterm_exits():
    "Within it SIGTERM raises `SystemExit(143)`, as Ctrl-C raises `KeyboardInterrupt`. Off the main thread, where signals cannot be set, nothing."
    if threading.current_thread() is not threading.main_thread(): yield; return
    def leave(*_): sys.exit(143)
    was = signal.signal(signal.SIGTERM, leave)
    try: yield
    finally: signal.signal(signal.SIGTERM, was)

def command(step):
    "The `main` of `step`, a module with `learner`, `train`, `target` and a docstring: for `call_parse`, and to call from Python."
    name = Path(step.__file__).stem
    def main(
        epochs:int=step.epochs, # Passes over the training images; the rule is at most 15
        seed:int=0,             # Seed of all random choices: same seed, machine and thread count, same numbers to the last bit
        lr:float=step.lr,       # Learning rate, at its peak where there is a cycle
        bs:int=step.bs,         # Images per training batch
        model:str=inspect.signature(step.learner).parameters['model'].default.__name__, # Net to train, a class of models.py
        root:str=None,          # Folder that holds MNIST/raw; else $MNIST_ROOT, else fastai's data folder
        data:str='auto',        # mnist: insist on it; digits: scikit-learn's small ones; auto: those where MNIST cannot be had
        resume:bool=False,      # Go on with a run that was interrupted, from its last whole epoch
    ):
        "Train this step and print its Target / Result / Analysis. Exit status: 0 target met or not judged, 1 missed, 2 wrong option."
        for option,value,ok,wanted in (('epochs', epochs, epochs >= 1, '1 or more'), ('seed', seed, 0 <= seed < 2**32, '0 or more, below 2**32'),
                                       ('lr', lr, 0 < lr < math.inf, 'a positive number'), ('bs', bs, bs >= 1, '1 or more'),
                                       ('model', model, model in nets, ', '.join(nets)), ('data', data, data in ('auto', 'mnist', 'digits'), 'auto, mnist or digits')):
            if not ok:
                print(f'{name}.py: error: argument --{option}: {value!r} is not {wanted}', file=sys.stderr)
                return 2
        if epochs > max_epochs: print(f'*** {epochs} epochs: the rule is at most {max_epochs}, so the target will not be judged.', file=sys.stderr)
        print(table(nets[model]()))
        saved,start = Checkpoint(name, resume, epochs=epochs, lr=lr, seed=seed, bs=bs),time.perf_counter()
        cbs = [saved] if sys.stdout.isatty() or IN_NOTEBOOK else [saved, PlainLog()]
        try:
            with sigterm_exits():
                learn = step.train(epochs, lr, cbs, model=nets[model], seed=seed, bs=bs, data=data, root=root)
                return finish(learn, saved, step.__doc__, step.target, time.perf_counter() - start)
        except (CliError, FloatingPointError) as e:  # fastai puts a line of its own before those of a callback
            kept = f' The last whole epoch is kept in {saved.file}.' if isinstance(e, FloatingPointError) and saved.done else ''
            raise CliError(str(e).splitlines()[-1].strip() + kept) from None
        except (KeyboardInterrupt, SystemExit) as e:
            print(f"\nstopped after epoch {saved.done}, target not judged{'; --resume goes on from there' if saved.done else ''}")
            return e.code if isinstance(e, SystemExit) else 130
    return main
