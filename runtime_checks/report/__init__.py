"""The verdict as terminal table, HTML, JSON and JUnit XML."""
