"""Tests against emulated clouds: real SDKs, real HTTP, real processes; only the data centre is missing."""
