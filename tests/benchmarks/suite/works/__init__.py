"""All works, in the order of the report. A work is added by a module here and a line below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suite.contenders import WEB
from suite.work import Work
from suite.works.arrays import ArrayResults, ArrayTraffic, OneArray, SharedArray
from suite.works.caches import (
    CacheBigArgument,
    CacheBigResult,
    CacheCallers,
    CacheMany,
    CacheMappedResult,
    CacheProcesses,
    CacheSmall,
)
from suite.works.cold_start import ColdStart, PoolStart
from suite.works.long_stream import LongStream
from suite.works.mixed_calls import MixedCalls
from suite.works.object_files import (
    ArrayFile,
    DictsFile,
    ForestFile,
    FrameFile,
    IntegersFile,
    SmallArraysFile,
)
from suite.works.one_call import OneCall, OnePayload
from suite.works.tiny_calls import SeparateCalls, TinyCalls
from suite.works.web import WebCrash, WebLeft, WebLight, WebOverload

WORKS: Mapping[str, Work[Any]] = {
    work.name: work
    for work in (
        TinyCalls(),
        OneCall(),
        OnePayload(),
        SeparateCalls(),
        ColdStart(),
        PoolStart(),
        MixedCalls(),
        LongStream(),
        OneArray(),
        SharedArray(),
        ArrayResults(),
        ArrayTraffic(),
        ArrayFile(),
        IntegersFile(),
        DictsFile(),
        SmallArraysFile(),
        ForestFile(),
        FrameFile(),
        CacheSmall(),
        CacheBigArgument(),
        CacheBigResult(),
        CacheMappedResult(),
        CacheCallers(),
        CacheProcesses(),
        CacheMany(),
        WebLight(),
        WebLeft(),
        WebCrash(),
        WebOverload(),
    )
}

# Servers have a run of their own: what a visitor waits for is a matter of seconds at a time.
WEB_WORKS = [name for name, work in WORKS.items() if work.contenders is WEB]
OTHER_WORKS = [name for name, work in WORKS.items() if work.contenders is not WEB]
