"What the steps share: the stop at a NaN loss, checkpoints, what a run saves and prints."
import io, sys
from data import clean_train, not_mnist  # first: it silences a warning of fastai's import
from fastai.vision.all import *
from fastcore.script import CliError

import models  # after fastai, which has a `models` of its own
from models import table

max_epochs = 15  # the rule
n_late = 3       # each of the last so many epochs must reach the target
nets = {name: net for name,net in vars(models).items() if name.startswith('Model_')}


class StopAtNaN(Callback):
    "Stops a fit with a `FloatingPointError` at the first loss that is not finite (`TerminateOnNaNCallback` stops without a word)."
    def before_fit(self): self.run = not hasattr(self.learn, 'lr_finder')  # which diverges on purpose
    def after_loss(self):
        where = f'epoch {self.epoch+1}, {"batch" if self.training else "test batch"} {self.iter+1}'
        if not self.loss.isfinite().all(): raise FloatingPointError(
            f'Stopped in {where}: the loss is {self.loss.mean().item()}. A lower learning rate may help.')

def history(learn):
    "The last fit of `learn`, a row per epoch, from 1: losses and accuracies (fractions), of training as the net trains and of validation."
    names = learn.recorder.metric_names[1:-1]  # without epoch and time
    values = [[float(v) for v in row] for row in learn.recorder.values]
    return pd.DataFrame(values, columns=names, index=pd.RangeIndex(1, len(values)+1, name='epoch')).round(6)

def write(make, path):
    "Let `make(file)` write `path` through a binary file, atomically: a full disk or a crash leaves the old file whole."
    new,file = path.with_name(f'.{path.name}'),io.BytesIO()
    make(file)
    try:
        new.write_bytes(file.getvalue())
        os.replace(new, path)
    finally: new.unlink(missing_ok=True)


class Checkpoint(Callback):
    """Saves after each epoch all that a run needs to continue, and with `resume` continues: bit-identical to a run never interrupted.
    `options` are those of the command line that make the run what it is: a checkpoint of another run is refused."""
    order = Recorder.order + 1
    done,old = 0,[]  # whole epochs so far; the values of those in the checkpoint
    def __init__(self, step, resume, **options): self.step,self.resume,self.options = step,resume,options
    def before_fit(self):
        train,valid = self.dls.train_ds,self.dls.valid_ds
        self.folder = Path('runs')/self.step/('not-MNIST' if not_mnist in train.name else '')
        self.file = self.folder/'checkpoint.pth'
        self.recipe = dict(**self.options, trains_on=train.name, device=str(self.dls.device), threads=torch.get_num_threads(),
                           torch=str(torch.__version__))
        try: self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e: raise CliError(f'{self.folder}: {e.strerror}. Nothing was trained, since nothing could be saved.') from None
        print(f'{self.options["model"]}: {train.name} ({len(train):,} images), {valid.name} ({len(valid):,})', flush=True)
        if self.resume: self.old = self.load()
        elif self.file.exists(): print(f'*** Starting anew; {self.file}, which --resume would continue, will be lost.', file=sys.stderr)
    def before_epoch(self):
        self.recorder.log[0] = self.epoch+1  # fastai counts from 0
        if self.epoch < len(self.old):
            self.recorder.log += L(self.old[self.epoch])
            raise CancelEpochException
    def after_epoch(self):
        self.done = self.epoch+1
        if self.done <= len(self.old): return
        smooth,ema = self.recorder.smooth_loss,getattr(self.learn, 'ema', None)
        state = dict(recipe=self.recipe, values=history(self.learn).values.tolist(),
                     net=ema.weights if ema else self.model.state_dict(), ema=ema.mean.state_dict() if ema else {},
                     opt=[dict(o) for o in self.opt.state_dict()['state']], smooth=(smooth.count, float(smooth.val)),
                     loaders=[dl.rng.getstate() for dl in self.dls], torch=torch.get_rng_state(), cuda=torch.cuda.get_rng_state_all())
        try: write(partial(torch.save, state), self.file)
        except OSError as e: print(f'*** {self.file}: {e.strerror}. Training continues, but --resume will not.', file=sys.stderr)
    def load(self):
        "Put the state of the checkpoint in place, and return the values of its epochs."
        try: state = torch.load(self.file, weights_only=True, map_location=self.dls.device)  # never runs code that a file contains
        except FileNotFoundError: raise CliError(f'There is no {self.file} to resume: run without --resume.') from None
        except Exception: state = None
        if not isinstance(state, dict) or not isinstance(state.get('recipe'), dict):
            raise CliError(f'{self.file} is not a whole checkpoint of these steps. Delete it and run without --resume.')
        other = [f'{k} {state["recipe"].get(k)} there, {v} here' for k,v in self.recipe.items() if state['recipe'].get(k) != v]
        if other: raise CliError(f'{self.file} is of another run: {"; ".join(other)}.')
        self.model.load_state_dict(state['net'])
        if state['ema']: self.ema.mean.load_state_dict(state['ema'])
        self.opt.load_state_dict({**self.opt.state_dict(), 'state': state['opt']})
        self.recorder.smooth_loss.count,self.recorder.smooth_loss.val = state['smooth'][0],tensor(state['smooth'][1])
        torch.set_rng_state(state['torch'].cpu())
        torch.cuda.set_rng_state_all([o.cpu() for o in state['cuda']])
        for dl,rng in zip(self.dls, state['loaders']): dl.rng.setstate(rng)
        return state['values']


class PlainLog(Callback):
    "A line per epoch in place of fastai's bars, whose carriage returns are for a terminal."
    order = Recorder.order + 2
    def before_fit(self):
        self.progress.run,self.learn.logger = False,self.line
        self.line(self.recorder.metric_names)
    def line(self, values): print(' '.join(f'{o:>14.4f}' if isinstance(o, float) else f'{o:>14}' for o in values), flush=True)

def curves(rows, target):
    "Loss and accuracy per epoch, of training as the net trains and of validation, with the target."
    _,(loss,accuracy) = plt.subplots(1, 2, figsize=(11, 4.5))
    low = 100*min(target, rows.valid_accuracy[-5:].min()) - 1  # the first epochs would hide the last ones
    rows.filter(like='loss').plot(ax=loss, style=['o--', 'o-'], logy=True, ylabel='loss', xticks=rows.index)
    (100*rows.filter(like='accuracy')).plot(ax=accuracy, style=['o--', 'o-'], ylim=(low, 100.1), ylabel='accuracy, %', xticks=rows.index)
    accuracy.axhline(100*target, color='black', lw=1, ls=':', label=f'target {target:.2%}')
    accuracy.legend(loc='lower right')  # the last epochs are at the top

def pictures(learn, rows, target):
    "Each picture of a run: name -> function that draws it."
    interp = ClassificationInterpretation.from_learner(learn)
    return dict(samples=partial(learn.dls.train.show_batch, max_n=36, figsize=(9, 9)), curves=partial(curves, rows, target),
                confusion=partial(interp.plot_confusion_matrix, figsize=(7, 7)),
                top_losses=partial(interp.plot_top_losses, 16, figsize=(11, 12)))

def save(learn, rows, target, folder):
    "Save history, weights and pictures of a trained `learn` into `folder`, and list them."
    def saved(make, name):
        write(make, folder/name)
        print(f'saved {folder/name}')
    saved(rows.to_csv, 'history.csv')
    saved(partial(torch.save, learn.model.state_dict()), 'weights.pth')
    with plt.ioff():  # no windows
        for name,draw in pictures(learn, rows, target).items():
            draw()
            plt.tight_layout()
            saved(partial(plt.savefig, format='png', dpi=100), f'{name}.png')
            plt.close()

def verdict(rows, target, on_mnist=True):
    "(exit status, words): 0 when each of the last `n_late` epochs reached `target`, or when the run is not judged; else 1."
    if not on_mnist:           return 0, f'not judged: {not_mnist}'
    if len(rows) > max_epochs: return 0, f'not judged: {len(rows)} epochs, the rule is at most {max_epochs}'
    last = rows.valid_accuracy[-n_late:]
    met = (last >= target).all()
    return int(not met), f"{'target met' if met else 'TARGET MISSED'}: {target:.2%} or more in each of the last {len(last)} epochs"

def finish(learn, saved, text, target, seconds):
    "Save the run, print its step's Target / Result / Analysis and what was measured, and return the exit status."
    rows,unsaved = history(learn),None
    on_mnist,last = not_mnist not in learn.dls.train_ds.name,rows.valid_accuracy[-5:]
    with learn.no_bar(), learn.no_logging():
        try: save(learn, rows, target, saved.folder)
        except OSError as e: unsaved = f'{e.filename or saved.folder}: {e.strerror}. Only what is listed above was saved; free disk space.'
        clean = learn.validate(dl=clean_train(learn.dls))[1]
    status,words = verdict(rows, target, on_mnist)
    measured = f'last {len(last)} of {len(rows)} epochs: mean {last.mean():.2%}, lowest {last.min():.2%}'
    print(f"""
{(text or '').strip().format(this_run=measured + ('' if on_mnist else f', on {not_mnist}'))}

This run
    last epochs  {' '.join(f"{a:.2%}" for a in last)} (target {target:.2%})
    train        {clean:.2%} of the training images without augmentation and dropout, after the last epoch
    time         {int(seconds//60)} min {seconds%60:.0f} s to train and test; {learn.dls.device}, {torch.get_num_threads()} CPU threads
    verdict      {words}""")
    if unsaved: raise CliError(unsaved)
    saved.file.unlink(missing_ok=True)  # the run is whole: nothing is left to resume
    return status

def run(step, train, target, text, resume, **options):  # epochs, lr, seed, model, data
    "Run `train` with the `options` of the command line of `step`, save and print the run, and return the exit status."
    for stream in (sys.stdout, sys.stderr):  # an encoding without × or ± must not end a run
        if hasattr(stream, 'reconfigure'): stream.reconfigure(errors='replace')
    epochs,lr,seed,model,data = options.values()
    for option,ok,wanted in (('epochs', epochs >= 1, '1 or more'), ('lr', 0 < lr < math.inf, 'a positive number'),
                             ('seed', 0 <= seed < 2**32, '0 or more, below 2**32'), ('model', model in nets, ', '.join(nets))):
        if not ok:
            print(f'{step}.py: error: argument --{option}: {options[option]!r} is not {wanted}', file=sys.stderr)
            return 2
    if epochs > max_epochs: print(f'*** {epochs} epochs: the rule is at most {max_epochs}; the run will not be judged.', file=sys.stderr)
    print(table(nets[model]()))
    saved,start = Checkpoint(step, resume, **options),time.perf_counter()
    cbs = [saved] if IN_NOTEBOOK or sys.stdout and sys.stdout.isatty() else [saved, PlainLog()]
    try:
        learn = train(epochs=epochs, lr=lr, cbs=cbs, model=nets[model], seed=seed, data=data)
        return finish(learn, saved, text, target, time.perf_counter() - start)
    except (CliError, FloatingPointError) as e:  # fastai puts a line of its own before those of a callback
        kept = f' The last whole epoch is kept in {saved.file}.' if isinstance(e, FloatingPointError) and saved.done else ''
        raise CliError(str(e).splitlines()[-1].strip() + kept) from None
    except KeyboardInterrupt:
        print(f"\nstopped after epoch {saved.done}, target not judged{'; --resume continues from there' if saved.done else ''}")
        return 130
