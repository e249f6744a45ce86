"""`ash.plot`: what the artists show, what the files hold, what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ash import plot
from ash.checks import UserError


def frame(k=6, shape=(8, 8), step=0, out_rank=1, seed=0, **given):
    """Tuples drawn at random in a tensor of that shape, with points beside each; `given` overrides."""
    generator = np.random.default_rng(seed)
    r = len(shape)
    tuples = {
        "means": generator.uniform(0, 1, (k, r)) * (np.array(shape) - 1),
        "scales": generator.uniform(0.2, 1, (k, r)),
        "values": generator.normal(size=k),
        "points": np.stack([generator.integers(0, size, 3 * k) for size in shape], axis=1),
    }
    return plot.Frame(step=step, shape=shape, out_rank=out_rank, **(tuples | given))


def artist(ax, name):
    """The collection of that name in the picture, or None."""
    found = [each for each in ax.collections if each.get_gid() == name]
    assert len(found) <= 1
    return found[0] if found else None




def test_a_dot_lies_at_every_mean_with_input_to_the_right_and_output_down():
    one = frame(means=[[1.0, 6.5], [3.0, 0.25]], scales=np.ones((2, 2)), values=[-1.0, 2.0], k=2)
    ax = plot.means(one)
    assert np.allclose(artist(ax, "means").get_offsets(), [[6.5, 1.0], [0.25, 3.0]])
    assert ax.get_xlim() == (-0.5, 7.5)
    assert ax.get_ylim() == (7.5, -0.5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("input index", "output index")


def test_the_largest_values_are_drawn_last():
    ax = plot.means(frame(k=3, values=[-3.0, 0.5, 1.0]))
    assert artist(ax, "means").get_array().tolist() == [0.5, 1.0, -3.0]


@pytest.mark.parametrize(("shape", "aspect"), [
    ((8, 8), 1), ((10, 80), 1), ((10, 784), 9.8), ((784, 10), 1 / 9.8),
])
def test_an_index_is_as_high_as_wide_up_to_eight_to_one(shape, aspect):
    ax = plot.means(frame(shape=shape))
    assert ax.get_aspect() == pytest.approx(aspect)
    assert ("compressed 9.8 ×" in ax.get_xlabel() + ax.get_ylabel()) == (aspect != 1)
    ax.figure.canvas.draw()
    box = ax.get_window_extent()
    assert 1 / 8.5 < box.width / box.height < 8.5


def test_an_ellipse_spans_one_scale_to_each_side_by_column():
    one = frame(k=2, scales=[[0.5, 2.0], [1.5, 0.0]], values=[1.0, 2.0])
    ellipses = artist(plot.means(one), "scales")
    assert np.allclose(ellipses.get_widths(), [4.0, 0.0])
    assert np.allclose(ellipses.get_heights(), [1.0, 3.0])
    assert np.allclose(ellipses.get_offsets(), one.means[:, ::-1])
    assert (ellipses.get_facecolors()[:, 3] < 0.5).all()


def test_ellipses_are_left_out_where_there_are_thousands():
    ax = plot.means(frame(k=20_000, shape=(20_000, 20_000), points=None))
    assert artist(ax, "scales") is None
    dots = artist(ax, "means")
    assert len(dots.get_offsets()) == 20_000
    assert dots.get_sizes()[0] < artist(plot.means(frame()), "means").get_sizes()[0]


@pytest.mark.parametrize(("values", "limit"), [([1.0] * 6, 1), ([0.0] * 6, 1), ([-3, 1, 1, 1, 2, 2], 3)])
def test_colours_are_symmetric_about_zero(values, limit):
    ax = plot.means(frame(values=values))
    assert artist(ax, "means").get_clim() == (-limit, limit)
    assert ax.figure.axes[1].get_ylim() == (-limit, limit)
    ax.figure.canvas.draw()
    assert (artist(ax, "means").get_facecolors()[:, 3] == 1).all()


def test_the_sign_of_a_value_is_its_colour():
    ax = plot.means(frame(k=2, values=[-1.0, 1.0]), value_limit=1)
    ax.figure.canvas.draw()
    negative, positive = artist(ax, "means").get_facecolors()
    assert negative[2] > negative[0]
    assert positive[0] > positive[2]


def test_values_that_are_no_numbers_are_left_out_and_do_not_spoil_the_scale():
    broken = frame(k=3, means=[[1, 1], [np.nan, 2], [3, 3]], values=[np.nan, 1.0, 2.0],
                   scales=[[1, 1], [np.nan, 1], [1, 1]])
    ax = plot.means(broken)
    ax.figure.canvas.draw()
    assert artist(ax, "means").get_clim() == (-2, 2)


def test_sampled_points_are_drawn_once_each_and_only_on_request():
    one = frame(points=[[1, 2], [1, 2], [3, 0]])
    points = artist(plot.means(one), "points")
    assert sorted(map(tuple, points.get_offsets())) == [(0, 3), (2, 1)]
    assert points.get_alpha() < 0.5
    assert artist(plot.means(one, points=False), "points") is None
    assert artist(plot.means(frame(points=None)), "points") is None


def test_target_entries_are_hollow_squares():
    target = artist(plot.means(frame(), target=torch.tensor([[0, 3], [5, 1]])), "target")
    assert target.get_offsets().tolist() == [[3, 0], [1, 5]]
    assert len(target.get_facecolors()) == 0


@pytest.mark.parametrize(("shape", "lines"), [((8, 8), 16), ((10, 784), 10), ((500, 500), 0)])
def test_grid_lines_lie_on_the_integers_of_small_sides(shape, lines):
    ax = plot.means(frame(shape=shape))
    grids = [each for each in ax.collections if each.get_gid() == "grid"]
    segments = np.concatenate([np.empty((0, 2, 2)), *[grid.get_segments() for grid in grids]])
    assert len(segments) == lines
    fixed = segments[:, 0] == segments[:, 1]
    assert np.isin(segments[:, 0][fixed], np.arange(10)).all()


def test_other_ranks_show_the_columns_that_are_chosen():
    one = frame(k=4, shape=(300, 28, 14))
    ax = plot.means(one)
    assert ax.get_xlim() == pytest.approx((-0.5, 27.5))
    assert ax.get_xlabel() == "input index, dimension 0"
    ax = plot.means(one, columns=(1, 2))
    order = np.argsort(np.abs(one.values))
    assert np.allclose(artist(ax, "means").get_offsets(), one.means[order][:, [2, 1]])
    assert ax.get_ylim() == (27.5, -0.5)
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("input index, dimension 0", "input index, dimension 1")
    assert plot.means(frame(k=4, shape=(4, 5, 6, 7), out_rank=2)).get_xlim() == (-0.5, 5.5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1)])
def test_a_single_tuple_in_the_smallest_tensors(shape):
    ax = plot.means(frame(k=1, shape=shape))
    ax.figure.canvas.draw()
    assert len(artist(ax, "means").get_offsets()) == 1
    assert all(0 <= tick < shape[1] for tick in ax.get_xticks())


def test_a_tensor_without_tuples_is_an_empty_plane():
    none = frame(k=0)
    ax = plot.means([none, none])
    ax.figure.canvas.draw()
    assert len(artist(ax, "means").get_offsets()) == 0


def test_several_frames_show_the_paths_to_the_last():
    frames = [frame(step=step, seed=step) for step in range(3)]
    ax = plot.means(frames)
    paths = np.array(artist(ax, "paths").get_segments())
    assert paths.shape == (6, 3, 2)
    assert np.allclose(paths[:, 1], frames[1].means[:, ::-1])
    order = np.argsort(np.abs(frames[-1].values))
    assert np.allclose(artist(ax, "means").get_offsets(), paths[order, 2])


def test_means_draw_into_axes_that_are_given():
    own = plot.means(frame())
    other = own.figure.add_subplot()
    assert plot.means(frame(), ax=other, title="here") is other
    assert other.get_title() == "here"
    assert artist(other, "means") is not None


def test_a_frame_keeps_what_it_was_given():
    means = torch.rand(4, 2, requires_grad=True)
    values = torch.rand(4, dtype=torch.bfloat16)
    one = frame(k=4, means=means, values=values, scales=torch.ones(4, 2))
    before = means.detach().clone()
    with torch.no_grad():
        means.zero_()
    assert np.array_equal(one.means, before.numpy())
    assert one.values.dtype == np.float32
    assert np.array_equal(one.values, values.float().numpy())


@pytest.mark.parametrize(("given", "message"), [
    ({"means": np.zeros((6, 3))}, r"means has the shape \(6, 3\)"),
    ({"means": np.zeros((2, 6, 2))}, "means has the shape"),
    ({"scales": np.zeros((5, 2))}, r"scales has the shape \(5, 2\); expected \(6, 2\)"),
    ({"scales": -np.ones((6, 2))}, "below 0"),
    ({"values": np.zeros(5)}, r"values has the shape \(5,\)"),
    ({"values": ["a"] * 6}, "real numbers"),
    ({"values": [[1], [1, 2]]}, "not an array"),
    ({"points": np.zeros((4, 3), int)}, "points has 3 columns"),
    ({"points": np.zeros((4, 2))}, "whole numbers"),
    ({"out_rank": 2}, "out_rank=2"),
])
def test_a_frame_refuses_what_does_not_fit(given, message):
    with pytest.raises(UserError, match=message):
        frame(**given)


@pytest.mark.parametrize(("frames", "options", "message"), [
    ([], {}, "no frames"),
    ([frame(), frame(shape=(8, 9))], {}, "differ in shape"),
    ([frame(), frame(k=5)], {}, "different numbers of tuples"),
    (frame(), {"columns": (0, 2)}, "0 to 1"),
    (frame(), {"columns": (1, 1)}, "two different"),
    (frame(), {"value_limit": 0}, "value_limit=0"),
    (frame(), {"target": [[1, 2, 3]]}, "target has the shape"),
])
def test_means_refuse_what_does_not_fit(frames, options, message):
    with pytest.raises(UserError, match=message):
        plot.means(frames, **options)


def test_a_row_has_one_panel_a_frame_and_one_scale(tmp_path):
    frames = [frame(step=1000 * step, seed=step) for step in range(5)]
    figure = plot.row(frames, tmp_path / "row.png")
    *panels, bar = figure.axes
    assert [ax.get_title() for ax in panels] == [f"step {each.step:,}" for each in frames]
    assert panels[1].get_title() == "step 1,000"
    reach = max(np.abs(each.values).max() for each in frames)
    assert {artist(ax, "means").get_clim() for ax in panels} == {(-reach, reach)}
    assert bar.get_ylim() == pytest.approx((-reach, reach))
    assert len({ax.get_position().y0 for ax in panels}) == 1
    with Image.open(tmp_path / "row.png") as picture:
        assert picture.width > 4 * picture.height


@pytest.mark.parametrize(("shape", "lines"), [((10, 784), 4), ((784, 10), 1), ((8, 8), 1), ((8, 16), 2)])
def test_wide_panels_are_stacked_and_tall_ones_abreast(shape, lines):
    panels = plot.row([frame(shape=shape, step=step) for step in range(4)]).axes[:-1]
    assert panels[0].get_subplotspec().get_gridspec().nrows == lines


@pytest.mark.parametrize("draw", [plot.row, plot.curves, plot.image_grid])
def test_nothing_to_draw_is_an_error(draw):
    with pytest.raises(UserError, match=r"empty|no frames"):
        draw({} if draw is not plot.row else [])


def pixels(path):
    """Every frame of a GIF as RGB, and how long each is shown, in milliseconds."""
    with Image.open(path) as gif:
        shown, times = [], []
        for place in range(gif.n_frames):
            gif.seek(place)
            shown.append(np.asarray(gif.convert("RGB")))
            times.append(gif.info["duration"])
        return shown, times


def test_a_gif_has_every_frame_and_holds_the_last(tmp_path):
    frames = [frame(step=step, seed=step) for step in range(7)]
    path = plot.animate(frames, tmp_path / "means.gif", fps=5, hold=1.5)
    shown, times = pixels(path)
    assert times == [200] * 6 + [1500]
    assert len({picture.shape for picture in shown}) == 1
    assert all((picture[0, 0] == 255).all() for picture in shown)
    assert all((one != other).any() for one, other in zip(shown, shown[1:], strict=False))


def test_what_stands_still_in_a_gif_keeps_every_pixel(tmp_path):
    shown, _ = pixels(plot.animate([frame(step=step, seed=step) for step in range(4)], tmp_path / "a.gif"))
    below = shown[0].shape[0] * 95 // 100  # the label of the lower axis
    assert (shown[0][below:] < 200).any()
    assert all(np.array_equal(shown[0][below:], picture[below:]) for picture in shown)


def test_a_history_can_be_drawn_as_it_is(tmp_path):
    history = plot.History(max_frames=4)
    for step in range(9):
        history.add(frame(step=step, seed=step))
    assert len(pixels(plot.animate(history, tmp_path / "a.gif"))[0]) == len(history)
    assert len(plot.row(history).axes) == len(history) + 1


@pytest.mark.parametrize(("frames", "name", "options", "message"), [
    ([], "a.gif", {}, "no frames"),
    ([frame()], "a.png", {}, "ends in .gif"),
    ([frame()], "a.gif", {"fps": 0}, "fps=0"),
    ([frame(), frame(shape=(9, 9))], "a.gif", {}, "differ in shape"),
])
def test_animate_refuses_and_leaves_nothing(tmp_path, frames, name, options, message):
    with pytest.raises(UserError, match=message):
        plot.animate(frames, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_save_writes_whole_files_or_none(tmp_path, monkeypatch):
    figure = plot.curves({"loss": ([0, 1], [1.0, 0.5])})
    path = tmp_path / "new" / "a.png"
    assert plot.save(figure, path) == path
    first = path.read_bytes()

    def fail(aside, **_):
        Path(aside).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(UserError, match="disk full"):
        plot.save(figure, path)
    assert path.read_bytes() == first
    assert list(path.parent.iterdir()) == [path]


def test_save_refuses_a_format_or_a_place_that_does_not_exist(tmp_path):
    figure = plot.curves({"loss": ([0, 1], [1.0, 0.5])})
    with pytest.raises(UserError, match="'xyz'"):
        plot.save(figure, tmp_path / "a.xyz")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        plot.save(figure, tmp_path / "file" / "a.png")


def test_curves_show_every_series_and_mark(tmp_path):
    steps = torch.arange(4)
    values = torch.tensor([4.0, 2.0, 1.0, 0.0], requires_grad=True)
    series = {"sampled": (steps, values), "rounded": ([3], [values[2]])}
    figure = plot.curves(series, tmp_path / "c.png", ylabel="error", logy=True, marks={"exact": 2})
    ax = figure.axes[0]
    sampled, rounded, mark = ax.get_lines()
    assert sampled.get_ydata().tolist() == [4, 2, 1, 0]
    assert rounded.get_marker() == "o"
    assert list(mark.get_xdata()) == [2, 2]
    assert [text.get_text() for text in ax.texts] == ["exact"]
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "error")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sampled", "rounded"]
    assert (tmp_path / "c.png").stat().st_size > 0


@pytest.mark.parametrize(("values", "end"), [([9, 5, 1, 0], "top"), ([0, 5, 8, 9], "bottom")])
def test_the_label_of_a_mark_keeps_clear_of_the_curve(values, end):
    ax = plot.curves({"one": (range(4), values)}, marks={"here": 3}).axes[0]
    assert ax.texts[0].get_verticalalignment() == end


def test_curves_without_a_positive_value_stay_linear():
    assert plot.curves({"error": ([0, 1], [0.0, 0.0])}, logy=True).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("pair", [([0, 1], [1.0]), ([[0]], [1.0]), (["a"], [1.0])])
def test_curves_refuse_what_is_no_line(pair):
    with pytest.raises(UserError, match="'loss'"):
        plot.curves({"loss": pair})


def test_images_share_one_scale(tmp_path):
    images = {"first": torch.zeros(4, 6), "last": np.full((4, 6), 3.0)}
    figure = plot.image_grid(images, tmp_path / "i.png", label="tuples")
    first, last, bar = figure.axes
    assert first.images[0].get_clim() == last.images[0].get_clim() == (0, 3)
    assert (first.get_title(), last.get_title(), bar.get_ylabel()) == ("first", "last", "tuples")
    assert first.get_ylim() == (3.5, -0.5)
    assert (tmp_path / "i.png").exists()


@pytest.mark.parametrize(("image", "limits"), [(np.zeros((2, 2)), (0, 1)), (np.array([[-2.0, 1]]), (-2, 2)),
                                               (np.array([[np.nan, 2.0]]), (0, 2))])
def test_limits_of_images_begin_at_zero_or_are_symmetric(image, limits):
    assert plot.image_grid({"one": image}).axes[0].images[0].get_clim() == limits
    assert plot.image_grid({"one": image}, limits=(0, 5)).axes[0].images[0].get_clim() == (0, 5)


@pytest.mark.parametrize(("shape", "ratio"), [((28, 28), 1), ((4, 8), 2), ((10, 784), 5), ((784, 10), 0.2)])
def test_pixels_are_square_up_to_five_to_one(shape, ratio):
    figure = plot.image_grid({"one": np.ones(shape)})
    figure.canvas.draw()
    box = figure.axes[0].get_window_extent()
    assert box.width / box.height == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize("image", [np.zeros(3), np.zeros((0, 3)), np.zeros((1, 2, 3))])
def test_images_refuse_what_is_no_image(image):
    with pytest.raises(UserError, match="image"):
        plot.image_grid({"one": image})


@settings(max_examples=50)
@given(st.integers(2, 9), st.lists(st.integers(1, 20), min_size=1, max_size=80))
def test_a_history_is_bounded_and_holds_the_first_and_the_last(most, gaps):
    steps = np.cumsum(gaps).tolist()
    history = plot.History(max_frames=most)
    for count, step in enumerate(steps, 1):
        history.add(frame(k=1, step=step))
        held = [each.step for each in history.frames]
        assert len(held) == len(history) <= most
        assert held == sorted(set(held))
        assert (held[0], held[-1]) == (steps[0], steps[count - 1])
        assert len(held) == min(count, most) or len(held) > most // 2


def test_a_history_thins_evenly_and_never_forgets_what_it_shall_keep():
    history = plot.History(max_frames=5, keep=[3])
    for step in range(14):
        history.add(frame(k=1, step=step))
    assert [each.step for each in history] == [0, 3, 4, 8, 12, 13]
    assert [each.step for each in history.at([0, 3, 6, 11, 99])] == [0, 3, 4, 12, 13]


def test_a_history_refuses_steps_that_fall_and_questions_while_empty():
    history = plot.History()
    with pytest.raises(UserError, match="holds no frame"):
        history.at([0])
    history.add(frame(step=5))
    with pytest.raises(UserError, match="step 5 after step 5"):
        history.add(frame(step=5))
    with pytest.raises(UserError, match="max_frames=1"):
        plot.History(max_frames=1)


def test_importing_plot_loads_no_matplotlib():
    code = "import sys, ash.plot; sys.exit('matplotlib' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pyplot_is_never_loaded(tmp_path):
    code = ("import sys, ash.plot as p; f = p.Frame(0, [[1, 2]], [[1, 1]], [1], None, (4, 4));"
            f"p.row([f], {str(tmp_path / 'a.png')!r}); p.animate([f], {str(tmp_path / 'a.gif')!r});"
            "sys.exit('matplotlib.pyplot' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
