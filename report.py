"What the steps share: the stop at a NaN loss, the command line's run, what it saves and what it prints."
import contextlib, io, sys
from data import clean_train, not_mnist  # first: it silences a warning of fastai's import
from fastai.vision.all import *
from fastcore.script import CliError

from models import nets, table  # after fastai, which has a `models` of its own

max_epochs = 15  # the rule
n_late = 3       # each of the last so many epochs must reach the target


class StopAtNaN(Callback):
    "Ends a fit with a `FloatingPointError` after an epoch whose loss is not finite (fastai's own says nothing)."
    order = Recorder.order + 1
    def before_fit(self): self.run = not hasattr(self.learn, 'lr_finder')  # which diverges on purpose
    def after_epoch(self):
        losses = [value for value in self.recorder.values[-1] if isinstance(value, float)]
        if not np.isfinite(losses).all(): raise FloatingPointError(
            f'Stopped after epoch {self.epoch+1}: the loss is not a finite number. A lower learning rate may help.')


def history(learn):
    "The last fit of `learn`, a row per epoch, from 1: loss and accuracy (a fraction), as it trains and in validation."
    names = learn.recorder.metric_names[1:-1]  # without epoch and time
    rows = pd.DataFrame(map(list, learn.recorder.values), columns=names).round(6)
    rows.index = pd.RangeIndex(1, len(rows)+1, name='epoch')
    return rows

def write(make, path):
    "Let `make(file)` write `path`, atomically: a full disk or a crash leaves the old file whole."
    file,part = io.BytesIO(),path.with_name(f'.{path.name}')
    make(file)
    path.parent.mkdir(exist_ok=True)
    try:
        part.write_bytes(file.getvalue())
        os.replace(part, path)
    finally: part.unlink(missing_ok=True)


class EpochLog(Callback):
    "Counts the epochs of a run from 1; with fastai's bars, or with plain lines, where these would fill a log."
    order = Recorder.order + 2
    done = 0  # whole epochs

    def __init__(self, bars): self.bars = bars
    def before_fit(self):
        if self.bars: return
        self.progress.run,self.learn.logger = False,self.line
        self.line(self.recorder.metric_names)
    def line(self, values):
        print(' '.join(f'{o:>14.4f}' if isinstance(o, float) else f'{o:>14}' for o in values), flush=True)
    def before_epoch(self): self.recorder.log[0] = self.epoch+1  # fastai counts from 0
    def after_epoch(self): self.done = self.epoch+1


def curves(rows, target):
    "Loss and accuracy per epoch, as the net trains and in validation, with the target."
    _,(loss,accuracy) = plt.subplots(1, 2, figsize=(11, 4.5))
    rows.filter(like='loss').plot(ax=loss, style='o-', logy=True, xticks=rows.index, ylabel='loss')
    rows.filter(like='accuracy').plot(ax=accuracy, style='o-', xticks=rows.index, ylabel='accuracy')
    lowest = min(target, *rows.valid_accuracy[-5:])
    accuracy.set_ylim(lowest - .01, 1.001)  # the first epochs would hide the last ones
    accuracy.axhline(target, color='black', ls=':', label=f'target {target:.2%}')
    accuracy.legend(loc='lower right')

def pictures(learn, rows, target):
    "The pictures of a run: name -> function that draws it."
    interp = ClassificationInterpretation.from_learner(learn)
    return dict(samples=partial(learn.dls.train.show_batch, max_n=36, figsize=(9, 9)),
                curves=partial(curves, rows, target),
                confusion=partial(interp.plot_confusion_matrix, figsize=(7, 7)),
                top_losses=partial(interp.plot_top_losses, 16, figsize=(11, 12)))

def draw_png(draw, file):
    "Draw a picture into `file`, in matplotlib's own style: the reader's may need LaTeX."
    with plt.ioff(), plt.style.context('default'):
        draw()
        plt.tight_layout()
        plt.savefig(file, format='png')
        plt.close()

def save(learn, rows, target, folder):
    "Save history, weights and pictures of a trained `learn` in `folder`; returns what could not be saved, and why."
    files = {'history.csv': rows.to_csv, 'weights.pth': partial(torch.save, learn.model.state_dict())}
    for name,draw in pictures(learn, rows, target).items(): files[f'{name}.png'] = partial(draw_png, draw)
    lost = []
    for name,make in files.items():
        path = folder/name
        try: write(make, path)
        except Exception as e:
            why = getattr(e, 'strerror', None) or str(e) or repr(e)
            lost.append(f'{path}: {why.splitlines()[0]}')
        else: print(f'saved {path}')
    return lost

def verdict(rows, target, on_mnist=True):
    "(exit status, words): 0 when each of the last `n_late` epochs reached `target`, or the run is not judged; else 1."
    if not on_mnist:           return 0, f'not judged: {not_mnist}'
    if len(rows) > max_epochs: return 0, f'not judged: {len(rows)} epochs, the rule is at most {max_epochs}'
    last = rows.valid_accuracy[-n_late:]
    met = (last >= target).all()
    words = 'target met' if met else 'TARGET MISSED'
    return int(not met), f'{words}: {target:.2%} or more in each of the last {len(last)} epochs'

def finish(learn, folder, text, target, seconds):
    "Save a run, print its step's Target / Result / Analysis and what was measured; return the exit status."
    rows = history(learn)
    last = rows.valid_accuracy[-5:]
    on_mnist = len(learn.dls.train_ds) >= 50_000  # or a fold of it
    if not on_mnist: folder /= 'not-MNIST'
    with learn.no_bar(), learn.no_logging():
        lost = save(learn, rows, target, folder)
        clean = learn.validate(dl=clean_train(learn.dls))[1]
    status,words = verdict(rows, target, on_mnist)
    measured = f'last {len(last)} of {len(rows)} epochs: mean {last.mean():.2%}, lowest {last.min():.2%}'
    if not on_mnist: measured += f', on {not_mnist}'
    machine = f'{learn.dls.device}, {torch.get_num_threads()} CPU threads'
    print(f"""
{(text or '').strip().format(this_run=measured)}

This run
    last epochs  {' '.join(f"{a:.2%}" for a in last)} (target {target:.2%})
    train        {clean:.2%} of the training images without augmentation and dropout, after the last epoch
    time         {seconds//60:.0f} min {seconds%60:.0f} s to train and test; {machine}
    verdict      {words}""")
    if lost: raise CliError('Not saved: ' + '; '.join(lost))
    return status


class Output:
    "A stream of text whose reader may go away (`| head`, a closed terminal): then the text is lost, not the run."
    def __init__(self, stream):
        self.stream = stream or io.StringIO()
        # Nor does a letter that the reader's encoding lacks end a run.
        if hasattr(stream, 'reconfigure'): stream.reconfigure(errors='replace')
    def __getattr__(self, name): return getattr(self.stream, name)
    def write(self, text): self.until_lost(self.stream.write, text)
    def flush(self): self.until_lost(self.stream.flush)
    def until_lost(self, do, *args):
        try: do(*args)
        except OSError: os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

def wrong_option(epochs, lr, seed, model):
    "What is wrong with the options, in words; None if nothing is."
    if epochs < 1:            return f'--epochs: {epochs} is not 1 or more'
    if not 0 < lr < math.inf: return f'--lr: {lr} is not a positive number'
    if not 0 <= seed < 2**32: return f'--seed: {seed} is not 0 or more, below 2**32'
    if model not in nets:     return f'--model: {model!r} is not one of {", ".join(nets)}'

def run(step, train, target, text, epochs, lr, seed, model, data):
    "Run `train` with the options of the command line of `step`, save and print the run; return the exit status."
    with contextlib.redirect_stdout(Output(sys.stdout)), contextlib.redirect_stderr(Output(sys.stderr)):
        if wrong := wrong_option(epochs, lr, seed, model):
            print(f'{step}.py: error: argument {wrong}', file=sys.stderr)
            return 2
        if epochs > max_epochs:
            print(f'*** {epochs} epochs: the rule is at most {max_epochs}; no target is judged.', file=sys.stderr)
        print(table(nets[model]()))
        folder,log,start = Path('runs')/step, EpochLog(IN_NOTEBOOK or sys.stdout.isatty()), time.perf_counter()
        try: folder.mkdir(parents=True, exist_ok=True)
        except OSError as e: raise CliError(f'Nothing can be saved here, so nothing was trained: {e}') from None
        try:
            learn = train(epochs=epochs, lr=lr, cbs=log, model=model, seed=seed, data=data)
            return finish(learn, folder, text, target, time.perf_counter() - start)
        except (CliError, FloatingPointError) as e:
            raise CliError(str(e).splitlines()[-1].strip()) from None  # fastai adds a line of its own before it
        except KeyboardInterrupt:
            saved = 'only what is listed above was saved' if log.done == epochs else 'nothing was saved'
            print(f'\nStopped after epoch {log.done} of {epochs}: {saved}.')
            return 130
