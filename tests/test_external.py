"""``refmotion external``: started as RELION starts external jobs, and the files it waits for."""

import pytest
from job import GIVEN, held_by_another, said

from refmotion_nb.cli import external, main
from refmotion_nb.data.star import read_star

JOB = "External/job007/"
OF_RELION_3 = ("rlnPipeLineNodeType", 3, 10)
OF_RELION_4 = ("rlnPipeLineNodeTypeLabel", "ParticlesData.star.relion.refine3d", "DensityMap.mrc.halfmap")
OF_RELION_5 = ("rlnPipeLineNodeTypeLabel", "ParticleGroupMetadata.star.relion.refine3d", "DensityMap.mrc.halfmap")


@pytest.fixture
def project(tiny, tmp_path, monkeypatch):
    """Return a folder, made the current one, with the simulated files and the folder of an external job."""
    for name in ("Extract", "MotionCorr", "Movies", "Ref", "gain.mrc"):
        (tmp_path / name).symlink_to(tiny.folder / name)
    (tmp_path / JOB).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*params, reference="Ref/half2.mrc"):
    """Call it as RELION does: its own words first, then labels and values, some of which are empty."""
    return main([
        "external", "--o", JOB, "--in_mics", "MotionCorr/corrected_micrographs.star", "--in_parts", "Extract/particles.star",
        "--in_3dref", reference, "--in_mask", "Ref/mask.mrc", *params, "--j", "2",
    ])  # fmt: skip


def marks(project):
    return {path.name for path in (project / JOB).glob("RELION_*")}


def test_relion_is_told_what_was_made(project, capsys, monkeypatch):
    monkeypatch.setattr("refmotion_nb.stages.job.remove_maps", lambda _: None)  # those below are of no validation
    (project / JOB / "RELION_JOB_EXIT_FAILURE").touch()  # of an earlier try
    for column, particles, half_map in (OF_RELION_3, OF_RELION_4, OF_RELION_5):
        (project / JOB / "job_pipeline.star").write_text(
            f"data_pipeline_nodes\n\nloop_\n_rlnPipeLineNodeName #1\n_{column} #2\nExtract/particles.star {particles}\n"
        )
        assert call(*GIVEN, "--float16") == 0
        assert marks(project) == {"RELION_JOB_EXIT_SUCCESS", "RELION_OUTPUT_NODES.star"}
        nodes = read_star(project / JOB / "RELION_OUTPUT_NODES.star")["output_nodes"]
        assert list(nodes.columns) == ["rlnPipeLineNodeName", column]
        made = [[f"{JOB}particles.star", particles], [f"{JOB}Maps/both_half1.mrc", half_map]]
        assert nodes.values.tolist() == made[: len(nodes)]
        (project / JOB / "Maps").mkdir(exist_ok=True)  # as a validation would leave
        (project / JOB / "Maps/both_half1.mrc").touch()
    assert len(nodes) == 2
    out, err = capsys.readouterr()
    assert "particles written" in out and not err
    images = read_star(project / JOB / "particles.star")["particles"]["rlnImageName"]
    assert (project / images[0].split("@")[1]).exists()


@pytest.mark.parametrize(
    "params, reference, why",
    [
        (["--until", "polished"], "Ref/half1.mrc", "argument --until: invalid choice"),
        ([], "Ref/mask.mrc", "Ref/mask.mrc has neither half1 nor half2 in its name"),
        ([], "Ref/half1_missing.mrc", "half map 1 not found: "),
    ],
)
def test_relion_is_told_of_a_failure(project, capsys, params, reference, why):
    (project / JOB / "RELION_OUTPUT_NODES.star").touch()  # of an earlier try
    try:
        assert call(*params, reference=reference) == 1
    except SystemExit as end:
        assert end.code == 2
    assert marks(project) == {"RELION_JOB_EXIT_FAILURE"}
    assert said(capsys)[0].startswith(why)


def test_marks_of_a_job_at_work_are_left_to_it(project, capsys):
    mine = {"RELION_JOB_ABORT_NOW", "RELION_OUTPUT_NODES.star"}
    for mark in mine:
        (project / JOB / mark).touch()
    with held_by_another(project / JOB):
        assert call(*GIVEN) == 1
    assert marks(project) == mine
    assert said(capsys)[-1].startswith("another run is writing to External/job007")


def test_a_job_is_aborted_and_continued(project, monkeypatch):
    monkeypatch.setattr(external, "LOOK_EVERY_S", 0.01)
    wish = project / JOB / "RELION_JOB_ABORT_NOW"
    read = external.parsed

    def parsed(words):  # the job has begun
        wish.touch()
        return read(words)

    with monkeypatch.context() as patch:
        patch.setattr(external, "parsed", parsed)
        assert call(*GIVEN) == 143
    assert marks(project) == {"RELION_JOB_EXIT_ABORTED"}
    assert call(*GIVEN) == 0
    assert marks(project) == {"RELION_JOB_EXIT_SUCCESS", "RELION_OUTPUT_NODES.star"}


def test_commands_other_than_this_one_take_no_unknown_options(project, capsys):
    with pytest.raises(SystemExit):
        main(["check", "--particles", "Extract/particles.star", "--in_mics", "MotionCorr/corrected_micrographs.star"])
    assert said(capsys)[0].startswith("unrecognized arguments: --in_mics")
