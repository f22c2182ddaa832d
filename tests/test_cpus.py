"""How many cores there are, over made-up proc and cgroup trees, and what n_jobs means on them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aparallel import cpu_count
from aparallel._ground import cpus
from aparallel._ground.cgroups import Mount, limit_folders, parse_mounts, parse_paths
from aparallel._ground.cpus import CgroupQuota, effective_n_jobs, parse_cfs_quota, parse_cpu_max

V2_MOUNT = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:11 - cgroup cgroup rw,cpu,cpuacct\n"
OTHER_MOUNTS = (
    "24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuset rw shared:12 - cgroup cgroup rw,cpuset\n"
    "34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def write(root: Path, path: str, text: str) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def system(root: Path, mounts: str, cgroup: str) -> CgroupQuota:
    """A made-up machine; every look reads it afresh."""
    write(root, "/proc/self/mountinfo", OTHER_MOUNTS + mounts)
    write(root, "/proc/self/cgroup", cgroup)
    return CgroupQuota(str(root), max_age=0)


def write_v1(root: Path, folder: str, quota: int, period: int = 100_000) -> None:
    write(root, f"{folder}/cpu.cfs_quota_us", f"{quota}\n")
    write(root, f"{folder}/cpu.cfs_period_us", f"{period}\n")


class TestCgroupVersion2:
    @pytest.mark.parametrize(
        ("cpu_max", "cores"),
        [
            ("200000 100000\n", 2),
            ("150000 100000\n", 2),
            ("1000 100000\n", 1),
            ("400000 50000\n", 8),
            ("max 100000\n", None),
            ("", None),
            ("nonsense", None),
            ("100000 0\n", None),
        ],
    )
    def test_own_quota_is_rounded_up_to_whole_cores(self, tmp_path: Path, cpu_max: str, cores: int | None) -> None:
        quota = system(tmp_path, V2_MOUNT, "0::/app\n")
        write(tmp_path, "/sys/fs/cgroup/app/cpu.max", cpu_max)
        assert quota.cpus() == cores

    def test_a_parents_tighter_quota_binds(self, tmp_path: Path) -> None:
        quota = system(tmp_path, V2_MOUNT, "0::/kubepods/pod7/app\n")
        write(tmp_path, "/sys/fs/cgroup/kubepods/pod7/app/cpu.max", "max 100000\n")
        write(tmp_path, "/sys/fs/cgroup/kubepods/pod7/cpu.max", "300000 100000\n")
        write(tmp_path, "/sys/fs/cgroup/kubepods/cpu.max", "1600000 100000\n")
        assert quota.cpus() == 3

    def test_a_siblings_quota_does_not_bind(self, tmp_path: Path) -> None:
        quota = system(tmp_path, V2_MOUNT, "0::/app\n")
        write(tmp_path, "/sys/fs/cgroup/other/cpu.max", "100000 100000\n")
        assert quota.cpus() is None

    def test_in_a_container_the_mount_point_is_our_own_cgroup(self, tmp_path: Path) -> None:
        quota = system(tmp_path, V2_MOUNT, "0::/\n")
        write(tmp_path, "/sys/fs/cgroup/cpu.max", "250000 100000\n")
        assert quota.cpus() == 3

    def test_outside_the_namespaces_root_the_mount_point_counts(self, tmp_path: Path) -> None:
        quota = system(tmp_path, V2_MOUNT, "0::/../other\n")
        write(tmp_path, "/sys/fs/cgroup/cpu.max", "100000 100000\n")
        write(tmp_path, "/sys/fs/other/cpu.max", "700000 100000\n")
        assert quota.cpus() == 1


class TestCgroupVersion1:
    CGROUP = "12:pids:/app\n4:cpu,cpuacct:/app\n3:cpuset:/elsewhere\n1:name=systemd:/app\n"

    @pytest.mark.parametrize(("quota_us", "cores"), [(200_000, 2), (150_000, 2), (-1, None), (1_000, 1)])
    def test_own_quota_is_rounded_up_to_whole_cores(self, tmp_path: Path, quota_us: int, cores: int | None) -> None:
        quota = system(tmp_path, V1_MOUNT, self.CGROUP)
        write_v1(tmp_path, "/sys/fs/cgroup/cpu,cpuacct/app", quota_us)
        assert quota.cpus() == cores

    def test_a_parents_tighter_quota_binds(self, tmp_path: Path) -> None:
        quota = system(tmp_path, V1_MOUNT, "4:cpu,cpuacct:/slice/app\n")
        write_v1(tmp_path, "/sys/fs/cgroup/cpu,cpuacct/slice/app", 800_000)
        write_v1(tmp_path, "/sys/fs/cgroup/cpu,cpuacct/slice", 200_000)
        assert quota.cpus() == 2

    def test_a_container_that_knows_its_path_only_as_the_host_does_finds_its_quota(self, tmp_path: Path) -> None:
        mount = "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu ro master:11 - cgroup cgroup rw,cpu\n"
        quota = system(tmp_path, mount, "4:cpu:/docker/abc/inner\n")
        write_v1(tmp_path, "/sys/fs/cgroup/cpu/inner", -1)
        write_v1(tmp_path, "/sys/fs/cgroup/cpu", 100_000)
        assert quota.cpus() == 1

    def test_quota_without_period_limits_nothing(self, tmp_path: Path) -> None:
        quota = system(tmp_path, V1_MOUNT, self.CGROUP)
        write(tmp_path, "/sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us", "100000\n")
        assert quota.cpus() is None

    def test_beside_version_2_the_tighter_of_both_binds(self, tmp_path: Path) -> None:
        unified = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        quota = system(tmp_path, V1_MOUNT + unified, "4:cpu,cpuacct:/app\n0::/app\n")
        write_v1(tmp_path, "/sys/fs/cgroup/cpu,cpuacct/app", 400_000)
        write(tmp_path, "/sys/fs/cgroup/unified/app/cpu.max", "300000 100000\n")
        assert quota.cpus() == 3


class TestReading:
    def test_without_cgroup_files_nothing_limits(self, tmp_path: Path) -> None:
        assert CgroupQuota(str(tmp_path)).cpus() is None

    def test_files_are_read_at_most_once_per_max_age_and_changes_count_after_it(self, tmp_path: Path) -> None:
        now = 100.0
        system(tmp_path, V2_MOUNT, "0::/app\n")
        quota = CgroupQuota(str(tmp_path), max_age=1.0, clock=lambda: now)
        write(tmp_path, "/sys/fs/cgroup/app/cpu.max", "200000 100000\n")
        assert quota.cpus() == 2
        write(tmp_path, "/sys/fs/cgroup/app/cpu.max", "300000 100000\n")
        now = 100.99
        assert quota.cpus() == 2
        now = 101.0
        assert quota.cpus() == 3

    def test_the_answer_that_nothing_limits_is_kept_too(self, tmp_path: Path) -> None:
        system(tmp_path, V2_MOUNT, "0::/app\n")
        quota = CgroupQuota(str(tmp_path), clock=lambda: 0.0)
        assert quota.cpus() is None
        write(tmp_path, "/sys/fs/cgroup/app/cpu.max", "200000 100000\n")
        assert quota.cpus() is None


class TestParsing:
    def test_mounts_are_found_among_others_whatever_their_tags(self) -> None:
        text = OTHER_MOUNTS + V1_MOUNT + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\nbroken line\n"
        assert parse_mounts(text, "cpu") == [
            Mount(1, "/", "/sys/fs/cgroup/cpu,cpuacct"),
            Mount(2, "/", "/sys/fs/cgroup/unified"),
        ]

    def test_spaces_and_backslashes_in_mount_points_are_read_as_the_kernel_writes_them(self) -> None:
        (mount,) = parse_mounts("41 31 0:38 / /mnt/my\\040groups\\134040 rw - cgroup2 cgroup2 rw\n", "cpu")
        assert mount.point == "/mnt/my groups\\040"

    def test_paths_may_hold_colons(self) -> None:
        assert parse_paths("3:cpuset:/no\n2:cpu,cpuacct:/a:b\n0::/c:d\n\nbroken\n", "cpu") == {1: "/a:b", 2: "/c:d"}

    def test_folders_go_from_our_cgroup_up_to_the_mount_point(self) -> None:
        mounts = [Mount(2, "/", "/sys/fs/cgroup")]
        assert list(limit_folders(mounts, {2: "/a/b"})) == [
            (2, "/sys/fs/cgroup/a/b"),
            (2, "/sys/fs/cgroup/a"),
            (2, "/sys/fs/cgroup"),
        ]

    def test_a_mount_that_does_not_show_our_cgroup_is_passed_over_for_one_that_does(self) -> None:
        mounts = [Mount(2, "/other", "/mnt/other"), Mount(2, "/", "/sys/fs/cgroup")]
        assert list(limit_folders(mounts, {2: "/otherwise"})) == [
            (2, "/sys/fs/cgroup/otherwise"),
            (2, "/sys/fs/cgroup"),
        ]

    @given(st.integers(1, 10**9), st.integers(1, 10**6))
    def test_both_versions_round_up_and_never_to_nothing(self, quota: int, period: int) -> None:
        cores = parse_cpu_max(f"{quota} {period}\n")
        assert cores == parse_cfs_quota(f"{quota}\n", f"{period}\n")
        assert cores is not None
        assert (cores - 1) * period < quota <= cores * period

    @given(st.text(max_size=40))
    def test_no_text_makes_a_parser_fail(self, text: str) -> None:
        parse_mounts(text, "cpu")
        parse_paths(text, "cpu")
        parse_cpu_max(text)
        parse_cfs_quota(text, text)


class TestCpuCount:
    @pytest.fixture(autouse=True)
    def _no_override(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("APARALLEL_CPU_COUNT", raising=False)

    @pytest.fixture
    def limits(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """Three cores in the affinity mask; the cgroup's quota is the test's to write."""
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
        monkeypatch.setattr(cpus, "_quota", system(tmp_path, V2_MOUNT, "0::/app\n"))
        return tmp_path

    def test_affinity_alone(self, limits: Path) -> None:
        assert cpu_count() == 3

    def test_a_tighter_quota_binds(self, limits: Path) -> None:
        write(limits, "/sys/fs/cgroup/app/cpu.max", "150000 100000\n")
        assert cpu_count() == 2

    def test_a_wider_quota_does_not(self, limits: Path) -> None:
        write(limits, "/sys/fs/cgroup/app/cpu.max", "900000 100000\n")
        assert cpu_count() == 3

    def test_where_there_is_no_affinity_all_cores_count(self, limits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.setattr(os, "cpu_count", lambda: 7)
        assert cpu_count() == 7
        monkeypatch.setattr(os, "cpu_count", lambda: None)
        assert cpu_count() == 1

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
    def test_this_process_counts_what_it_may_run_on(self) -> None:
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(before)})
            assert cpu_count() == 1
        finally:
            os.sched_setaffinity(0, before)
        assert 1 <= cpu_count() <= len(before)

    @pytest.mark.parametrize(("text", "cores"), [("1", 1), ("64", 64), (" 4 ", 4), ("", 3)])
    def test_the_environment_overrides_both_unless_empty(
        self, limits: Path, monkeypatch: pytest.MonkeyPatch, text: str, cores: int
    ) -> None:
        monkeypatch.setenv("APARALLEL_CPU_COUNT", text)
        assert cpu_count() == cores

    @pytest.mark.parametrize("text", ["0", "-1", "+2", "1.5", "two", " ", "1_0", "²", "٣", "9" * 5000])
    def test_an_override_that_is_no_positive_integer_is_named_in_the_error(
        self, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setenv("APARALLEL_CPU_COUNT", text)
        with pytest.raises(ValueError, match="APARALLEL_CPU_COUNT=") as caught:
            cpu_count()
        assert repr(text) in str(caught.value)


class TestEffectiveNJobs:
    @pytest.mark.parametrize(
        ("n_jobs", "workers"), [(1, 1), (3, 3), (100, 100), (-1, 4), (-2, 3), (-4, 1), (-5, 1), (-100, 1)]
    )
    def test_negative_numbers_count_back_from_all_cores(self, n_jobs: int, workers: int) -> None:
        assert effective_n_jobs(n_jobs, 4) == workers

    def test_zero_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="n_jobs=0"):
            effective_n_jobs(0, 4)

    @pytest.mark.parametrize("n_jobs", [2.0, "2", None, True, False, np.float64(2)])
    def test_what_is_no_integer_is_an_error_that_shows_it(self, n_jobs: object) -> None:
        with pytest.raises(TypeError, match="n_jobs must be an integer") as caught:
            effective_n_jobs(n_jobs, 4)  # type: ignore[arg-type]
        assert repr(n_jobs) in str(caught.value)

    def test_numpy_integers_are_integers(self) -> None:
        workers = effective_n_jobs(np.int64(-2), 4)  # type: ignore[arg-type]
        assert workers == 3
        assert type(workers) is int

    @given(st.integers(), st.integers(1, 10_000))
    def test_there_is_always_a_worker(self, n_jobs: int, cores: int) -> None:
        if n_jobs:
            assert effective_n_jobs(n_jobs, cores) >= 1
