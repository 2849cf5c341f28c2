"""A run of the command line: train, judge, save, print. Read `verdict` and `finish` first; half of the rest is for a
full disk, a reader that is gone (`| head`), an interrupt, a loss that is not a number."""
import contextlib, errno, inspect, io, sys
from data import not_mnist  # first: it silences a warning of fastai's import
from fastai.vision.all import *
from fastcore.script import CliError

from models import count, nets, table  # after fastai, which has a `models` of its own

max_epochs = 15  # the rule
n_late = 3       # each of the last so many epochs must reach the target


class RunLog(Callback):
    "What a run prints, epochs from 1: with fastai's bars, or with plain lines, where these would fill a log."
    order = Recorder.order + 1
    done = 0  # whole epochs

    def __init__(self, bars): self.bars,self.lost = bars,[]  # lost: what could not be written, and why
    def say(self, text):
        "Print. The reader may be gone (`| head`): then the text is lost, not the run."
        try: print(text, flush=True)
        except OSError as e:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if e.errno not in (errno.EPIPE, errno.EINVAL):  # Windows says EINVAL for EPIPE
                self.lost.append(f'what is printed: {e.strerror}')
    def line(self, values):
        self.say(' '.join(f'{o:>14.4f}' if isinstance(o, float) else f'{o:>14}' for o in values))
    def before_fit(self):
        if self.bars: return
        self.progress.run,self.learn.logger = False,self.line
        self.line(self.recorder.metric_names)
    def before_epoch(self): self.recorder.log[0] = self.epoch+1  # fastai counts from 0
    def after_epoch(self): self.done = self.epoch+1


def history(learn):
    "The last fit of `learn`, a row per epoch, from 1: loss and accuracy (a fraction), as it trains and in validation."
    names = learn.recorder.metric_names[1:-1]  # without epoch and time
    rows = pd.DataFrame(map(list, learn.recorder.values), columns=names).round(6)
    rows.index = pd.RangeIndex(1, len(rows)+1, name='epoch')
    return rows

def curves(rows, target):
    "Loss and accuracy per epoch, as the net trains and in validation, with the target."
    _,(loss,accuracy) = plt.subplots(1, 2, figsize=(11, 4.5))
    rows.filter(like='loss').plot(ax=loss, style='o-', logy=True, xticks=rows.index, ylabel='loss')
    lowest = min(target, *rows.valid_accuracy[-5:])  # the first epochs would hide the last ones
    rows.filter(like='accuracy').plot(ax=accuracy, style='o-', xticks=rows.index, ylabel='accuracy',
                                      ylim=(lowest - .01, 1.001))
    accuracy.axhline(target, color='black', ls=':', label=f'target {target:.2%}')
    accuracy.legend(loc='lower right')

def draw_png(draw, file):
    "Draw a picture into `file`, in matplotlib's own style: the reader's may need LaTeX."
    with plt.ioff(), plt.style.context('default'):
        draw()
        plt.tight_layout()
        plt.savefig(file, format='png')
        plt.close()

def contents(learn, rows, target):
    "What is saved of a run: file name -> function that writes into a file. A picture may fail, so pictures are last."
    @functools.cache
    def interpretation(): return ClassificationInterpretation.from_learner(learn)
    pictures = dict(
        samples=lambda: learn.dls.train.show_batch(max_n=36, figsize=(9, 9)),
        curves=lambda: curves(rows, target),
        confusion=lambda: interpretation().plot_confusion_matrix(figsize=(7, 7)),
        top_losses=lambda: interpretation().plot_top_losses(16, figsize=(11, 12)))
    files = {'history.csv': rows.to_csv, 'weights.pth': partial(torch.save, learn.model.state_dict())}
    for name,draw in pictures.items(): files[f'{name}.png'] = partial(draw_png, draw)
    return files

def write(make, path):
    "Let `make(file)` write `path`, atomically: a full disk or a crash leaves the old file whole."
    file,part = io.BytesIO(),path.with_name(f'.{path.name}')
    make(file)
    path.parent.mkdir(exist_ok=True)
    try:
        part.write_bytes(file.getvalue())
        os.replace(part, path)
    finally: part.unlink(missing_ok=True)

def save(files, folder, log):
    "Write `files` into `folder`, one by one; `log.lost` gets what could not be saved, and why."
    for name,make in files.items():
        path = folder/name
        try: write(make, path)
        except Exception as e:
            why = getattr(e, 'strerror', None) or str(e) or repr(e)
            log.lost.append(f'{path}: {why.splitlines()[0]}')
        else: log.say(f'saved {path}')


def verdict(rows, target, on_mnist=True):
    "(exit status, words): 0 when each of the last `n_late` epochs reached `target`, or the run is not judged; else 1."
    if not on_mnist:           return 0, f'not judged: {not_mnist}'
    if len(rows) > max_epochs: return 0, f'not judged: {len(rows)} epochs, the rule is at most {max_epochs}'
    if len(rows) < n_late:     return 0, f'not judged: the target is for the last {n_late} epochs'
    met = (rows.valid_accuracy[-n_late:] >= target).all()
    words = 'target met' if met else 'TARGET MISSED'
    return int(not met), f'{words}: {target:.2%} or more in each of the last {n_late} epochs'

def finish(learn, step, options, log, seconds):
    "Save a run, print its step's Target / Result / Analysis and what was measured; return the exit status."
    rows = history(learn)
    last = rows.valid_accuracy[-5:]
    on_mnist = len(learn.dls.train_ds) >= 50_000  # or a fold of it
    changed = changes(step, options)
    folder = '-'.join([step_name(step), *changed, *([] if on_mnist else ['not-MNIST'])])
    with learn.no_bar(), learn.no_logging():
        save(contents(learn, rows, step.target), Path('runs')/folder, log)
        with learn.dls.train_ds.set_split_idx(1): clean = learn.validate(0)[1]  # the training images, unwarped
    status,words = verdict(rows, step.target, on_mnist)
    model,epochs,lr,seed = options.values()
    note = f' (changed: {", ".join(changed)}; Result and Analysis are those of the step unchanged)' if changed else ''
    log.say(f"""
{(step.__doc__ or '').strip()}

This run{note}
    parameters   {count(learn.model):,} ({model})
    recipe       {epochs} epochs, batches of {learn.dls.bs}, learning rate {lr}, seed {seed}
    train        {clean:.2%} after the last epoch, without augmentation and dropout
    test         {last.iloc[-1]:.2%} after the last epoch
    last {len(last)} of {len(rows)}  mean {last.mean():.2%}, lowest {last.min():.2%}
    last epochs  {' '.join(f"{a:.2%}" for a in last)} (target {step.target:.2%})
    time         {seconds//60:.0f} min {seconds%60:.0f} s; {learn.dls.device}, {torch.get_num_threads()} CPU threads
    verdict      {words}""")
    if log.lost: raise CliError('Not saved: ' + '; '.join(log.lost))
    return status


def step_name(step): return Path(step.__file__).stem

def wrong_option(model, epochs, lr, seed):
    "What is wrong with the options, in words; None if nothing is."
    if model not in nets:     return f'--model: {model!r} is not one of {", ".join(nets)}'
    if epochs < 1:            return f'--epochs: {epochs} is not 1 or more'
    if not 0 < lr < math.inf: return f'--lr: {lr} is not a positive number'
    if not 0 <= seed < 2**32: return f'--seed: {seed} is not 0 or more, below 2**32'

def changes(step, options):
    "The options that are not the defaults of the step, as the name of the run's folder has them, such as `epochs4`."
    defaults = inspect.signature(step.main).parameters
    found = [name for name,value in options.items() if value != defaults[name].default]
    return [f'{name.removeprefix("model")}{options[name]}' for name in found]

def run(step, model, epochs, lr, seed, data):
    "Train `step`, a module, with the options of its command line, save and print the run; return the exit status."
    options = dict(model=model, epochs=epochs, lr=lr, seed=seed)
    if wrong := wrong_option(**options):
        print(f'{step_name(step)}.py: error: argument {wrong}', file=sys.stderr)
        return 2
    with contextlib.suppress(AttributeError):  # there is no stdout, or a notebook's
        sys.stdout.reconfigure(errors='replace')  # a letter that its encoding lacks ends no run
    bars = IN_NOTEBOOK or sys.stdout and sys.stdout.isatty()
    log,start = RunLog(bars),time.perf_counter()
    log.say(table(nets[model]()))
    try: Path('runs').mkdir(exist_ok=True)
    except OSError as e: log.lost.append(str(e))
    if log.lost: raise CliError(f'Nothing can be saved here, so nothing was trained: {log.lost[0]}')
    try:
        learn = step.train(**options, data=data, cbs=log)
        if log.done < epochs: raise CliError(
            f'Stopped in epoch {log.done+1}: the loss is not a finite number. A lower learning rate may help.')
        return finish(learn, step, options, log, time.perf_counter() - start)
    except KeyboardInterrupt:
        saved = 'only what is listed above was saved' if log.done == epochs else 'nothing was saved'
        log.say(f'\nStopped after epoch {log.done} of {epochs}: {saved}.')
        return 130
