"""A training step, an evaluation step, and many of them in one program."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.optim import extra_args
from jaxcnn.train.losses import Loss, batch_loss, image_losses
from jaxcnn.train.state import TrainState
from jaxcnn.train.step_log import NO_LOG, StepLog, StepValues

Batch = Mapping[str, jax.Array]
Metrics = dict[str, Any]  # arrays, and pytrees of them
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Predict = Callable[[Any, jax.Array], jax.Array]
EvalStep = Callable[[Any, Batch], Metrics]

# The `nonfinite_step` of a run whose losses are all finite.
NEVER = np.iinfo(np.int32).max


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    normalize: Callable[[jax.Array], jax.Array],
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    log: StepLog = NO_LOG,
) -> TrainStep:
    """Makes one step of gradient descent on the mean loss of a batch.

    Args:
        model: the network.
        tx: the optimizer. Its `update` is given the extra arguments of `jaxcnn.optim.extra_args`.
        normalize: uint8[B, H, W, C] -> float32[B, H, W, C].
        augment: (key, uint8[B, H, W, C]) -> uint8[B, H, W, C], or None for none.
        label_smoothing: share of each label spread evenly over all classes, in 0..1, as in Szegedy
            et al., Rethinking the Inception Architecture, 2016 (arXiv 1512.00567). The metrics are
            those without it. A `loss` that is given is minimized as it is.
        loss: (logits float32[B, C], labels int32[B]) -> float32[B]. Default: cross entropy in nats.
        log: what else is measured.

    Returns:
        `train_step(state, batch) -> (state, metrics)`, jitted, with the state donated. The batch
        is `{"image": uint8[B, H, W, C], "label": int32[B]}`. The metrics are sums over the batch,
        taken in training mode before the update: `loss_sum` float32[]; `correct` int32[], correct
        predictions; `count` int32[], images; and those of `StepLog.measure`. Tracing it raises
        `UserError` where the optimizer, the loss or a metric cannot be used with this step.
    """
    tx = extra_args.normalize(tx)
    # Some optimizers differentiate forwards, which the stages on CPU do not.
    forward_model = model.clone(staged=False) if hasattr(model, "staged") else model

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # From the step's number, so that a resumed run draws what the unbroken one would have.
        key = jax.random.fold_in(state.key, state.step)
        augment_key, dropout_key = jax.random.split(key)
        images = batch["image"] if augment is None else augment(augment_key, batch["image"])

        def loss_fn(
            params: Any, model: nn.Module = model
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
            logits: jax.Array
            logits, changed = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                normalize(images),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            value, losses = batch_loss(loss, logits, batch["label"], label_smoothing)
            return value, (losses, logits, changed.get("batch_stats", {}))

        (value, (losses, logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        # XLA removes what the optimizer does not use.
        updates, opt_state = tx.update(
            grads,
            state.opt_state,
            state.params,
            value=value,
            grad=grads,
            value_fn=lambda params: loss_fn(params)[0],
            obj_fn=lambda params: loss_fn(params, forward_model)[0],
            grad_fn=lambda params, *_: jax.grad(loss_fn, has_aux=True)(params)[0],
            key=jax.random.fold_in(key, 2),
        )
        labels, params = batch["label"], state.params
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        values = StepValues(value, logits, labels, grads, updates, params, opt_state)
        return state, _metrics(losses, logits, labels) | log.measure(values, state.step)

    return jax.jit(train_step, donate_argnums=0)


def make_predict(
    model: nn.Module,
    *,
    normalize: Callable[[jax.Array], jax.Array],
    views: Callable[[jax.Array], jax.Array] | None = None,
) -> Predict:
    """Makes the prediction for a batch, in evaluation mode.

    Args:
        model: the network.
        normalize: uint8[B, H, W, C] -> float32[B, H, W, C].
        views: uint8[B, H, W, C] -> uint8[V, B, H, W, C], views whose predictions are averaged,
            see `jaxcnn.data.views`; or None for the images themselves.

    Returns:
        `predict(variables, images) -> logits`, float32[B, 10]. With views they are the logarithms
        of the views' mean probabilities.
    """

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        logits: jax.Array
        if views is None:
            logits = model.apply(variables, normalize(images), train=False)  # type: ignore[assignment]
            return logits
        # One after the other, so that memory does not grow with their number.
        logits = jax.lax.map(
            lambda view: model.apply(variables, normalize(view), train=False), views(images)
        )
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(logits.shape[0])

    return predict


def make_eval_step(
    model: nn.Module,
    *,
    normalize: Callable[[jax.Array], jax.Array],
    views: Callable[[jax.Array], jax.Array] | None = None,
    loss: Loss | None = None,
) -> EvalStep:
    """Makes the evaluation of one batch.

    Args:
        model: the network.
        normalize: uint8[B, H, W, C] -> float32[B, H, W, C].
        views: for test-time augmentation, see `make_predict`.
        loss: see `make_train_step`.

    Returns:
        `eval_step(variables, batch) -> metrics`, jitted, with the sums of `make_train_step`. The
        batch has a `mask`, bool[B]: images that are masked out (False) are not counted, so a
        last batch can be padded.
    """
    predict = make_predict(model, normalize=normalize, views=views)

    def eval_step(variables: Any, batch: Batch) -> Metrics:
        logits = predict(variables, batch["image"])
        losses = image_losses(loss, logits, batch["label"])
        return _metrics(losses, logits, batch["label"], batch["mask"])

    return jax.jit(eval_step)


def make_train_chunk(
    train_step: TrainStep,
    out_sharding: jax.sharding.Sharding | None = None,
    log: StepLog = NO_LOG,
) -> jax.stages.Wrapped:
    """Makes one program of many training steps.

    Args:
        train_step: of `make_train_step`, or any function of that form.
        out_sharding: of all that it returns. Default: the compiler's choice.
        log: that `train_step` was made with.

    Returns:
        `train_steps(state, batches, count, metrics=None, *rows) -> (state, metrics, *rows)`,
        jitted, with the state donated; `rows` are those of the log, see `StepLog.empty`. `batches`
        has an axis in front, K; the first `count` (int32[], at most K) are trained on, in order,
        and their metrics are added, one after the other, to those given: so the sums of an epoch do
        not depend on how it is cut. With them comes `nonfinite_step` int32[]: the first step,
        counted from 1, whose loss was not finite, or `NEVER`. One compiled program serves every
        count.
    """

    def train_steps(
        state: TrainState,
        batches: Batch,
        count: jax.Array,
        metrics: Metrics | None = None,
        *rows: jax.Array,
    ) -> tuple[Any, ...]:
        before = state.step

        def body(index: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            return take_step(train_step, log, _at(batches, index), before, *carry)

        start = zero_train_metrics(log.metrics) if metrics is None else metrics
        return jax.lax.fori_loop(0, count, body, (state, start, *rows))

    return jax.jit(train_steps, donate_argnums=0, out_shardings=out_sharding)


def make_train_single(
    train_step: TrainStep,
    out_sharding: jax.sharding.Sharding | None = None,
    log: StepLog = NO_LOG,
) -> jax.stages.Wrapped:
    """Makes a program of one training step, for networks that are slow in a loop.

    Args:
        train_step: of `make_train_step`, or any function of that form.
        out_sharding: of all that it returns. Default: the compiler's choice.
        log: that the step was made with.

    Returns:
        `train_single(state, batches, index, metrics, *rows) -> (state, metrics, *rows)`, jitted,
        with the state donated: the step with number `index` (int32[], from 0) of
        `make_train_chunk`'s program.
    """

    def train_single(
        state: TrainState, batches: Batch, index: jax.Array, metrics: Metrics, *rows: jax.Array
    ) -> tuple[Any, ...]:
        before = state.step - index
        return take_step(train_step, log, _at(batches, index), before, state, metrics, *rows)

    return jax.jit(train_single, donate_argnums=0, out_shardings=out_sharding)


def take_step(
    train_step: TrainStep,
    log: StepLog,
    batch: Batch,
    before: jax.Array,
    state: TrainState,
    sums: Metrics,
    *rows: jax.Array,
) -> tuple[Any, ...]:
    """Trains on a batch, adds its metrics to the sums, and logs its row.

    Args:
        train_step: of `make_train_step`, made with `log`.
        log: what else is measured.
        batch: of the step.
        before: int32[], number of steps before the chunk that the rows are of.
        state: before the step.
        sums: see `zero_train_metrics`.
        *rows: see `StepLog.empty`.

    Returns:
        State, sums and rows after the step.
    """
    state, metrics = train_step(state, batch)
    if rows:
        rows = (log.write(rows[0], metrics.pop("row"), state.step, before),)
    step = jnp.where(jnp.isfinite(metrics["loss_sum"]), jnp.int32(NEVER), state.step)
    first = jnp.minimum(sums["nonfinite_step"], step)
    added = jax.tree.map(jnp.add, sums, {**metrics, "nonfinite_step": step})
    return state, {**added, "nonfinite_step": first}, *rows


def _at(batches: Batch, index: jax.Array) -> Batch:
    """Returns the batch at an index of a chunk."""
    return {name: values[index] for name, values in batches.items()}


def make_eval_chunk(
    eval_step: EvalStep, out_sharding: jax.sharding.Sharding | None = None
) -> jax.stages.Wrapped:
    """Makes one program of many evaluation steps.

    Args:
        eval_step: of `make_eval_step`, or any function of that form.
        out_sharding: of the metrics. Default: the compiler's choice.

    Returns:
        `eval_steps(variables, batches) -> metrics`, jitted: the sums over all K batches that the
        front axis of `batches` holds.
    """

    def eval_steps(variables: Any, batches: Batch) -> Metrics:
        def body(sums: Metrics, batch: Batch) -> tuple[Metrics, None]:
            return jax.tree.map(jnp.add, sums, eval_step(variables, batch)), None

        return jax.lax.scan(body, zero_metrics(), batches)[0]

    return jax.jit(eval_steps, out_shardings=out_sharding)


def zero_metrics() -> Metrics:
    """Returns the metrics of zero images."""
    return {
        "loss_sum": jnp.zeros((), jnp.float32),
        "correct": jnp.zeros((), jnp.int32),
        "count": jnp.zeros((), jnp.int32),
    }


def zero_train_metrics(names: Iterable[str] = ()) -> Metrics:
    """Returns the training metrics of zero steps.

    Args:
        names: of the user-defined metrics.
    """
    own = {name: jnp.zeros((), jnp.float32) for name in names}
    zeros = {**zero_metrics(), "nonfinite_step": jnp.full((), NEVER, jnp.int32)}
    return {**zeros, "metrics": own} if own else zeros


def _metrics(
    losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> Metrics:
    """Returns sums over a batch: of the losses, correct predictions, and images."""
    mask = jnp.ones(labels.shape, bool) if mask is None else mask
    return {
        "loss_sum": jnp.sum(jnp.where(mask, losses, 0.0)),
        "correct": jnp.sum(mask & (logits.argmax(-1) == labels), dtype=jnp.int32),
        "count": jnp.sum(mask, dtype=jnp.int32),
    }
